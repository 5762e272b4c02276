"""Read the matrix products and convolutions of an ONNX file, with their sizes and operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokendetr.errors import ExportError


@dataclass(frozen=True)
class Product:
    """A matrix product or a convolution.

    Attributes:
        kind: ONNX's operator, "MatMul", "Gemm" or "Conv".
        weight: name of the parameter; "" for a product of two activations.
        rows: rows of the left factor over all leading dimensions; output pixels for "Conv".
        operations: number of multiply-adds.
    """

    kind: str
    weight: str
    rows: int
    operations: int


def products(path: str | Path) -> list[Product]:
    """Return all products of a file with fixed shapes, in the order of the graph.

    Raises:
        ExportError: a shape is unknown, or free (batch=None).
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), data_prop=True)
    shapes = _shapes(model.graph)
    maker = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        try:
            left, right = (shapes[name] for name in node.input[:2])
            output = shapes[node.output[0]]
        except KeyError as error:
            raise ExportError(
                f"{path}: the shape of {error} in the graph is not fixed: export the model with a "
                "batch size"
            ) from error
        weight = _parameter(node.input[1], maker)
        if node.op_type == "Conv":
            pixels = output[0] * math.prod(output[2:])
            found.append(Product("Conv", weight, pixels, pixels * math.prod(right)))
        else:
            inner = left[0] if _transposed(node) else left[-1]
            rows = math.prod(output[:-1])
            found.append(Product(node.op_type, weight, rows, rows * inner * output[-1]))
    return found


def _transposed(node: Any) -> bool:
    return any(each.name == "transA" and each.i for each in node.attribute)


def _shapes(graph: Any) -> Mapping[str, tuple[int, ...]]:
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if all(size.HasField("dim_value") for size in sizes):
            shapes.setdefault(value.name, tuple(size.dim_value for size in sizes))
    return shapes


def _parameter(name: str, maker: Mapping[str, Any]) -> str:
    """Return the parameter behind transpositions and slices of it; "" if it is computed."""
    while name in maker:
        node = maker[name]
        if node.op_type not in ("Transpose", "Identity", "Slice", "Reshape", "SplitToSequence"):
            return ""
        name = node.input[0]
    return name
