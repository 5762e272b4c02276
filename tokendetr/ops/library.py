"""Load the compiled kernels when ``tokendetr.ops`` is imported, or record why they cannot be.

The library is loaded here and not at the first call, so that ``torch.compile`` never traces it. It
has no Python symbols and uses PyTorch's stable ABI alone: a build also works with later releases.
"""

import ctypes
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_LOGGER = logging.getLogger(__name__)
_PATH = Path(__file__).resolve().parents[1] / "libtokendetr_ops.so"
_INTERFACE = 1  # of csrc/module.cpp
_INSTRUCTION_SETS = ("amx", "avx512_bf16", "avx512", "avx2", "portable")


@dataclass(frozen=True)
class LibraryFacts:
    """Facts about the build of the compiled kernels, and about this process's use of them.

    Attributes:
        path: the library's file, or None if there is none.
        load_error: None, or the reason why it cannot be used.
        device_types: device types with kernels.
        instruction_set: of the CPU kernels in this process, or None.
        torch: release that it was built with; later ones can load it too.
        cuda: release of the CUDA toolkit, or None without CUDA kernels.
        architectures: CUDA architectures, as in ``TORCH_CUDA_ARCH_LIST``, or None.
        compiler: command of the C++ compiler.
        left_out: why the build left out "kernels" (all of them) or "cuda".
    """

    path: str | None = None
    load_error: str | None = None
    device_types: tuple[str, ...] = ()
    instruction_set: str | None = None
    torch: str | None = None
    cuda: str | None = None
    architectures: str | None = None
    compiler: str | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def _noted(path: Path) -> dict[str, Any]:
    """Return what the build recorded beside the library; empty if there is no record."""
    try:
        noted = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}
    names = ("torch", "cuda", "architectures", "compiler", "left_out")
    return {name: noted[name] for name in names if noted.get(name) is not None}


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _why_not_loaded(error: OSError, noted: dict[str, Any]) -> str:
    """Return the likely reason, followed by the loader's error."""
    built_with = noted.get("torch", "an unknown release")
    running = torch.__version__
    if noted.get("cuda") and torch.version.cuda is None:
        return f"it was built for CUDA {noted['cuda']}, PyTorch {running} has no CUDA: {error}"
    if "torch" in noted and _release(running) < _release(built_with):
        return f"it was built with PyTorch {built_with}, newer than this {running}: {error}"
    return f"built with PyTorch {built_with}, it cannot be loaded by {running}: {error}"


def _load(path: Path = _PATH) -> LibraryFacts:
    noted = _noted(path)
    wanted = os.environ.get("TOKENDETR_CPU_ISA", "")
    if wanted and wanted not in _INSTRUCTION_SETS:
        known = ", ".join(_INSTRUCTION_SETS)
        _LOGGER.warning("TOKENDETR_CPU_ISA=%s is ignored: it is none of %s", wanted, known)
    kept = os.environ.get("TOKENDETR_KEEP_MB", "0")
    if not kept.isdecimal():
        _LOGGER.warning("TOKENDETR_KEEP_MB=%s is ignored: give a whole number of megabytes", kept)
    if not path.exists():
        reason = noted.get("left_out", {}).get("kernels") or f"it was not built: no file {path}"
        return LibraryFacts(load_error=reason, **noted)
    try:
        library = ctypes.CDLL(str(path))
        interface = library.tokendetr_interface()
        if interface != _INTERFACE:
            raise OSError(f"its interface is {interface}, these sources need {_INTERFACE}")
        torch.ops.load_library(path)
    except (OSError, AttributeError) as error:
        reason = _why_not_loaded(OSError(error), noted)
        return LibraryFacts(path=str(path), load_error=reason, **noted)
    library.tokendetr_cpu_isa.restype = ctypes.c_char_p
    return LibraryFacts(
        path=str(path),
        device_types=("cpu", "cuda") if library.tokendetr_has_cuda() else ("cpu",),
        instruction_set=library.tokendetr_cpu_isa().decode(),
        **noted,
    )


_FACTS = _load()


def library_facts() -> LibraryFacts:
    """Return how the compiled kernels were built and whether they can be used."""
    return _FACTS


def why_without(device_type: str) -> str | None:
    """Return None, or the reason why there are no compiled kernels for a device type."""
    if _FACTS.load_error is not None:
        return _FACTS.load_error
    if device_type in ("meta", *_FACTS.device_types):
        return None
    reason = _FACTS.left_out.get(device_type)
    return f"it was built without kernels for {device_type}" + (f": {reason}" if reason else "")
