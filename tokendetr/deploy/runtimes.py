"""Run exported files in each runtime, as functions of images and sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from tokendetr.deploy.programs import Format, error_line
from tokendetr.errors import ExportError, check_choice
from tokendetr.layers.precision import Precision, check_precision

Outputs = tuple[Tensor, ...]
Runner = Callable[[Tensor, Tensor], Outputs]

RUNTIMES: dict[str, tuple[str, ...]] = {
    "pt2": ("torch.export",),
    "aoti": ("aotinductor",),
    "onnx": ("onnxruntime", "openvino"),
    "onnx-custom": ("openvino", "onnxruntime"),
    "openvino": ("openvino",),
}
"""Format -> runtimes that can run it."""

Library = str | Sequence[str] | None
"""One or more shared libraries with the node of "onnx-custom", each made for one runtime."""

_ENTRY_POINTS = {"openvino": b"create_extensions", "onnxruntime": b"RegisterCustomOps"}
"""Runtime -> function by which it loads a library."""


def libraries(library: Library) -> dict[str, str]:
    """Return runtime -> library, by the entry points of the libraries.

    Raises:
        ExportError: a file cannot be read, or no runtime can load it.
    """
    found = {}
    for path in [library] if isinstance(library, str) else library or ():
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ExportError(f"library {path} cannot be read: {error.strerror}") from error
        runtimes = [name for name, entry in _ENTRY_POINTS.items() if entry in content]
        if not runtimes:
            raise ExportError(
                f"{path} extends neither OpenVINO nor ONNX Runtime: build it with "
                "`python csrc/openvino` or csrc/onnxruntime (docs/deploy.md)"
            )
        found[runtimes[0]] = path
    return found


def installed_runtimes(format: Format, *, library: Library = None) -> tuple[str, ...]:
    """Return the installed runtimes of a format.

    Args:
        format: format of the file.
        library: libraries with the custom node; only runtimes with one can run it.
    """
    candidates = RUNTIMES[format]
    if format == "onnx-custom":
        with_node = libraries(library)
        candidates = tuple(name for name in candidates if name in with_node)
    return tuple(
        name
        for name in candidates
        if name in ("torch.export", "aotinductor") or find_spec(name) is not None
    )


def open_exported(
    path: str | Path,
    runtime: str,
    *,
    library: Library = None,
    threads: int | None = None,
    precision: Precision = "float32",
) -> Runner:
    """Return a function ``(images, sizes) -> outputs`` that runs an exported file on the CPU.

    Args:
        path: the file.
        runtime: one of those in :data:`RUNTIMES`.
        library: libraries with the custom node, for files that have one.
        threads: number of threads for onnxruntime and openvino; None for their default.
        precision: "bfloat16" (or "bf16") lets openvino use it if the processor supports it.

    Raises:
        ExportError: the runtime is unknown or not installed, or lacks the precision, or cannot load
            the file; the function raises it if the runtime fails to run the file.
        FileNotFoundError: there is no such file.
    """
    check_precision(precision)
    openers: dict[str, Callable[[str, str | None, int | None], Runner]] = {
        "torch.export": _open_program,
        "aotinductor": _open_aoti,
        "onnxruntime": _open_onnxruntime,
        "openvino": partial(_open_openvino, precision=precision),
    }
    check_choice("runtime", runtime, openers, error=ExportError)
    if precision != "float32" and runtime != "openvino":
        raise ExportError(f"only openvino runs files in {precision}, not {runtime}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no exported file {path}")
    name = Path(path).name
    try:
        run = openers[runtime](str(path), libraries(library).get(runtime), threads)
    except ModuleNotFoundError as error:
        raise ExportError(f"{runtime} is not installed: pip install 'tokendetr[deploy]'") from error
    except Exception as error:  # every runtime has its own
        raise ExportError(
            f"{runtime} cannot load {name}, which is not a file for this runtime or was made for "
            f"another version of it: {error_line(error)}"
        ) from error

    def checked(images: Tensor, sizes: Tensor) -> Outputs:
        try:
            return run(images, sizes)
        except Exception as error:
            raise ExportError(f"{runtime} cannot run {name}: {error_line(error)}") from error

    return checked


def _open_program(path: str, library: str | None, threads: int | None) -> Runner:
    model = torch.export.load(path).module()

    def run(images: Tensor, sizes: Tensor) -> Outputs:
        with torch.no_grad():
            return tuple(model(images, sizes))

    return run


def _open_aoti(path: str, library: str | None, threads: int | None) -> Runner:
    from torch._inductor import aoti_load_package

    model = aoti_load_package(path)

    def run(images: Tensor, sizes: Tensor) -> Outputs:
        with torch.no_grad():
            return tuple(model(images, sizes))

    return run


def _open_onnxruntime(path: str, library: str | None, threads: int | None) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(library)
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor, sizes: Tensor) -> Outputs:
        found = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        return tuple(torch.from_numpy(np.asarray(each)) for each in found)

    return run


def _open_openvino(
    path: str, library: str | None, threads: int | None, *, precision: Precision
) -> Runner:
    import openvino

    core = openvino.Core()
    if library is not None:
        core.add_extension(library)
    # Processors with bfloat16 would use it unasked.
    hint = "f32" if precision == "float32" else "bf16"
    config: dict[str, object] = {"INFERENCE_PRECISION_HINT": hint}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    model = core.compile_model(path, "CPU", config)
    in_turns = Lock()  # the compiled model has one request, and refuses a second call meanwhile

    def run(images: Tensor, sizes: Tensor) -> Outputs:
        with in_turns:
            found = model([images.numpy(), sizes.numpy()])
        return tuple(torch.from_numpy(np.array(found[port])) for port in model.outputs)

    return run
