"""Convert a detector to files of ``torch.export``, AOTInductor, ONNX and OpenVINO.

Shapes: B image, H and W height and width of the canvas.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from tokendetr.compat.torch_private import without_torchvision_warnings
from tokendetr.deploy.entry import DeployedDetector
from tokendetr.deploy.operators import Sampling, check_kernels, decompositions
from tokendetr.errors import ExportError, OutputError

Format = Literal["pt2", "aoti", "onnx", "onnx-custom", "openvino"]
SUFFIXES: dict[str, str] = {
    "pt2": ".pt2",
    "aoti": ".pt2",
    "onnx": ".onnx",
    "onnx-custom": ".onnx",
    "openvino": ".xml",
}
"""Format -> extension of its files."""

_SHOWN = 250
"""Characters that are passed on of the beginning, and of the end, of another library's message."""

_COLOR = re.compile(r"\x1b\[[0-9;]*m")

OPSET = 20
OUTPUTS = ("boxes", "scores", "labels", "counts")
RAW_OUTPUTS = ("logits", "boxes", "valid")


def error_line(error: Exception) -> str:
    """Return the kind and the text of another library's error on one line of limited length."""
    words = " ".join(_COLOR.sub("", str(error)).split()) or "no reason given"
    if len(words) > 2 * _SHOWN:  # OpenVINO says first where it was raised, and last what failed
        words = f"{words[:_SHOWN]} ... {words[-_SHOWN:]}"
    return f"{type(error).__name__}: {words}"


def example_inputs(size: tuple[int, int], batch: int = 1) -> tuple[Tensor, Tensor]:
    """Return gray images that fill a canvas, and their sizes, for tracing a program."""
    images = torch.full((batch, 3, *size), 127.0)
    return images, torch.tensor([size] * batch, dtype=torch.long)


def trace(
    model: DeployedDetector, size: tuple[int, int], *, batch: int | None = 1
) -> ExportedProgram:
    """Trace a model into a program for one canvas.

    Args:
        model: the detector for deployment.
        size: height and width of the canvas in pixels.
        batch: number of images; None for any number, which needs ``padding=True``.

    Raises:
        ExportError: the model cannot be traced; the message says why.
    """
    check_kernels()
    shapes = None
    if batch is None:
        if not model.padding:
            raise ExportError("a program for images that fill the canvas has a fixed batch size")
        any_batch = {0: Dim("batch", min=1, max=1024)}
        shapes = {"images": any_batch, "sizes": any_batch}
    inputs = example_inputs(size, 2 if batch is None else batch)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
    except ExportError:
        raise
    except Exception as error:  # whatever the model's code raises when it is traced
        raise ExportError(f"torch.export cannot trace the model: {error_line(error)}") from error
    _forget_provenance(program)
    return program


def _forget_provenance(program: ExportedProgram) -> None:
    """Drop the history of each node, which every further pass copies for each of its nodes."""
    for node in program.graph.nodes:
        node.meta.pop("from_node", None)


def write_program(
    program: ExportedProgram, path: Path, format: Format, *, sampling: Sampling = "grid_sample"
) -> None:
    """Write a program in one of the formats.

    Args:
        program: program from :func:`trace`.
        path: the file; openvino writes a second one, ``.bin``, beside it.
        format: the format to write.
        sampling: for the ONNX formats and OpenVINO, see
            :func:`tokendetr.deploy.operators.decompositions`.

    Raises:
        ExportError: a package that the format needs is missing, or it lacks an operator.
        OutputError: the file cannot be written.
    """
    writers: dict[str, Callable[[], None]] = {
        "pt2": lambda: torch.export.save(program, path),
        "aoti": lambda: _write_aoti(program, path),
        "onnx": lambda: _write_onnx(program, path, sampling),
        "onnx-custom": lambda: _write_onnx(program, path, "custom"),
        "openvino": lambda: _write_openvino(program, path, sampling),
    }
    try:
        writers[format]()
    except ModuleNotFoundError as error:
        raise ExportError(
            f"--format {format} needs the package {error.name}: pip install 'tokendetr[deploy]'"
        ) from error
    except OSError as error:
        raise OutputError(f"{path.name} cannot be written: {error.strerror or error}") from error
    except ExportError:
        raise
    except Exception as error:  # whatever a converter or compiler raises
        raise ExportError(
            f"the model cannot be written as {format}: {error_line(error)}"
        ) from error


def _write_aoti(program: ExportedProgram, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(program, package_path=str(path))


def _write_onnx(program: ExportedProgram, path: Path, sampling: Sampling) -> None:
    import onnxscript  # noqa: F401  # the exporter's own message does not say what to install

    with torch.no_grad(), warnings.catch_warnings(), without_torchvision_warnings():
        warnings.simplefilter("ignore")
        standard = program.run_decompositions(decompositions(sampling))
        _forget_provenance(standard)
        names = (
            OUTPUTS if len(standard.graph_signature.user_outputs) == len(OUTPUTS) else RAW_OUTPUTS
        )
        converted = torch.onnx.export(
            standard,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images", "sizes"],
            output_names=list(names),
            verbose=False,
            # The optimizer of onnxscript 0.7 drops nodes that are used; runtimes optimize anyway.
            optimize=False,
        )
    assert converted is not None
    converted.save(str(path), external_data=False)


def _write_openvino(program: ExportedProgram, path: Path, sampling: Sampling) -> None:
    import openvino

    onnx_path = path.with_suffix(".onnx")
    try:
        _write_onnx(program, onnx_path, sampling)
        openvino.save_model(
            openvino.convert_model(str(onnx_path)), str(path), compress_to_fp16=False
        )
    finally:
        onnx_path.unlink(missing_ok=True)
