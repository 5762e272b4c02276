"""Decompositions of our operators for runtimes that do not have them.

Shapes: B image, N all tokens, Q query, M head, D head width, L level, P point, S sample of a level
(all its heads' and points') or bag of rows, A row of all bags, C channel, X = 2 (points) or 4
(boxes), R row of all images, tokens and heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from tokendetr.errors import ExportError
from tokendetr.ops import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    packed_attention_reference,
    sampling_locations,
)
from tokendetr.ops.kernels import compiled_operator
from tokendetr.ops.library import library_facts

Sampling = Literal["grid_sample", "gather", "custom"]
SAMPLINGS = ("grid_sample", "gather", "custom")
CUSTOM_DOMAIN, CUSTOM_NAME, CUSTOM_VERSION = "tokendetr", "MSDeformAttn", 1
"""The node of ``sampling="custom"``, which ``csrc/openvino`` implements."""

LONGEST_STABLE_SORT = 46_340
"""Entries up to which the keys of a stable sort fit into OpenVINO's integers of 32 bits."""

LevelShapes = tuple[tuple[int, int], ...]


def gathered_attention(
    value_BNMD: Tensor,
    level_shapes: LevelShapes,
    sampling_locations_BQMLP2: Tensor,
    attention_weights_BQMLP: Tensor,
) -> Tensor:
    """Compute ``ms_deform_attn`` by gathering rows, for runtimes whose GridSample is wrong.

    Args:
        value_BNMD: values of all levels' pixels, finest level first, row by row.
        level_shapes: ``(height, width)`` of each level.
        sampling_locations_BQMLP2: normalized ``(x, y)``; one that is not finite contributes 0.
        attention_weights_BQMLP: weight of each sample.

    Returns:
        Tensor of shape [B, Q, M * D].
    """
    batch, tokens, heads, width = value_BNMD.shape
    queries = sampling_locations_BQMLP2.shape[1]
    rows_RD = value_BNMD.reshape(batch * tokens * heads, width)
    finite = sampling_locations_BQMLP2.isfinite().all(dim=-1, keepdim=True)
    locations = torch.where(finite, sampling_locations_BQMLP2, -2.0).clamp(-2.0, 3.0)
    image_B111 = torch.arange(batch, device=value_BNMD.device).view(-1, 1, 1, 1) * tokens
    head_M1 = torch.arange(heads, device=value_BNMD.device)[:, None]
    total_BQMD: Tensor | None = None
    start = 0
    for level, (height, level_width) in enumerate(level_shapes):
        place_x = locations[:, :, :, level, :, 0] * level_width - 0.5
        place_y = locations[:, :, :, level, :, 1] * height - 0.5
        low_x, low_y = place_x.floor(), place_y.floor()
        part_x, part_y = place_x - low_x, place_y - low_y
        for step_x, step_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = low_x + step_x, low_y + step_y
            inside = (x >= 0) & (x < level_width) & (y >= 0) & (y < height)
            weight_BQMP = (
                (part_x if step_x else 1 - part_x)
                * (part_y if step_y else 1 - part_y)
                * inside.to(part_x.dtype)
                * attention_weights_BQMLP[:, :, :, level]
            )
            cell_BQMP = y.clamp(0, height - 1) * level_width + x.clamp(0, level_width - 1)
            row_BQMP = (cell_BQMP.long() + (image_B111 + start)) * heads + head_M1
            sample_BQMPD = rows_RD.index_select(0, row_BQMP.flatten()).view(*row_BQMP.shape, width)
            part_BQMD = (weight_BQMP[..., None] * sample_BQMPD).sum(dim=3)
            total_BQMD = part_BQMD if total_BQMD is None else total_BQMD + part_BQMD
        start += height * level_width
    assert total_BQMD is not None
    return total_BQMD.reshape(batch, queries, heads * width)


def _pairs(flat: Sequence[int]) -> LevelShapes:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _gathered_fused(
    value: Tensor, level_shapes: LevelShapes, reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    locations = sampling_locations(level_shapes, reference, offsets)
    weights = logits.flatten(-2).softmax(dim=-1).view(logits.shape)
    return gathered_attention(value, level_shapes, locations, weights)


def _standard(
    operator: Callable[..., Tensor], value: Tensor, level_shapes: Sequence[int], *rest: Tensor
) -> Tensor:
    return operator(value, _pairs(level_shapes), *rest)


def _custom(value: Tensor, level_shapes: Sequence[int], *rest: Tensor) -> Tensor:
    reference, offsets, logits = rest
    batch, _, heads, width = value.shape
    return torch.onnx.ops.symbolic(
        f"{CUSTOM_DOMAIN}::{CUSTOM_NAME}",
        (value, reference, offsets, logits),
        {"level_shapes": [int(size) for size in level_shapes]},
        dtype=value.dtype,
        shape=(batch, offsets.shape[1], heads * width),
        version=CUSTOM_VERSION,
    )


def _stable_sort(
    values: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Sort by TopK so that equal values keep their order in every runtime.

    ONNX demands that order of TopK, but OpenVINO returns equal values in any order. So a second
    TopK orders each run of equal values by position, on keys that all differ.
    """
    last = values.movedim(dim, -1)
    length = int(last.shape[-1])
    wide = last if last.dtype.is_floating_point else last.long()  # TopK lacks small integers
    sorted_values, position = wide.topk(length, dim=-1, largest=descending, sorted=True)
    if 2 <= length <= LONGEST_STABLE_SORT:
        begins = sorted_values[..., 1:] != sorted_values[..., :-1]
        run = torch.nn.functional.pad(begins.long().cumsum(-1), (1, 0))
        place = (run * length + position).topk(length, dim=-1, largest=False, sorted=True).indices
        position = position.gather(-1, place)
    return sorted_values.to(values.dtype).movedim(-1, dim), position.movedim(-1, dim)


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
) -> Any:
    """Sum bags of rows, none of them empty, by adding each row at its bag's place.

    The exporter's own form loops over the bags, and OpenVINO cannot load it.
    """
    if mode != 0 or include_last_offset:
        return NotImplemented
    row_AC = weight.index_select(0, indices)
    if per_sample_weights is not None:
        row_AC = row_AC * per_sample_weights[:, None]
    begins_A = torch.zeros_like(indices).scatter(0, offsets, torch.ones_like(offsets))
    bag_A = begins_A.cumsum(0) - 1
    sum_SC = row_AC.new_zeros(offsets.shape[0], row_AC.shape[1])
    sum_SC = sum_SC.scatter_add(0, bag_A[:, None].expand_as(row_AC), row_AC)
    number_S = torch.zeros_like(offsets).scatter_add(0, bag_A, torch.ones_like(bag_A))
    return sum_SC, bag_A, number_S, torch.zeros_like(offsets)


def decompositions(sampling: Sampling) -> dict[Any, Callable[..., Any]]:
    """Return the decomposition of each operator, for ``ExportedProgram.run_decompositions``.

    Args:
        sampling: form of deformable attention: "grid_sample" (the most widely optimized), "gather"
            (for runtimes whose GridSample is wrong), or one "custom" node.

    Raises:
        ExportError: there are no compiled kernels, so programs do not contain our operators.
    """
    check_kernels()
    plain, fused = compiled_operator("ms_deform_attn"), compiled_operator("ms_deform_attn_fused")
    table: dict[Any, Callable[..., Any]] = {
        compiled_operator("packed_attention"): packed_attention_reference,
        torch.ops.aten.sort.stable: _stable_sort,
        torch.ops.aten.argsort.stable: lambda *args, **options: _stable_sort(*args, **options)[1],
        torch.ops.aten.embedding_bag.default: _embedding_bag,
    }
    if sampling == "gather":
        table[plain] = partial(_standard, gathered_attention)
        table[fused] = partial(_standard, _gathered_fused)
        return table
    table[plain] = partial(_standard, ms_deform_attn_reference)
    table[fused] = partial(_standard, ms_deform_attn_fused_reference)
    if sampling == "custom":
        table[fused] = _custom
    return table


def check_kernels() -> None:
    """Raise ExportError if the compiled kernels, which programs are made with, are missing."""
    reason = library_facts().load_error
    if reason is not None:
        raise ExportError(
            f"models are exported with the compiled kernels, and there are none ({reason}): see "
            "docs/install.md"
        )
