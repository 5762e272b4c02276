"""Collect facts about the machine and the installed software, for bug reports."""

import importlib
import os
import platform
import sys

import detectron2
import numpy as np
import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]

_OPTIONAL = ("torchvision", "fvcore", "iopath", "omegaconf", "hydra", "pycocotools", "PIL", "cv2")


def _version(name: str) -> str:
    try:
        module = importlib.import_module(name)
    except Exception as error:
        return (
            f"not found ({type(error).__name__})"
            if not isinstance(error, ImportError)
            else "not found"
        )
    return str(getattr(module, "__version__", "installed"))


def _gpu_rows() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU available", "no, says torch.cuda.is_available()")]
    rows = [("GPU available", "yes")]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        rows.append((f"GPU {index}", f"{name} (arch={major}.{minor})"))
    rows.append(("CUDA of torch", str(torch.version.cuda)))
    return rows


def collect_env_info() -> str:
    """Return a table with the versions of everything that matters, and torch's build settings."""
    rows: list[tuple[str, str]] = [
        ("sys.platform", f"{sys.platform} ({platform.machine()})"),
        ("Python", sys.version.replace("\n", "")),
        ("numpy", np.__version__),
        ("detectron2", f"{detectron2.__version__} @{os.path.dirname(detectron2.__file__)}"),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", str(torch.version.debug)),
        *_gpu_rows(),
        ("CPU threads", str(torch.get_num_threads())),
        *((name, _version(name)) for name in _OPTIONAL),
    ]
    variables = {k: v for k, v in os.environ.items() if k.startswith(("DETECTRON2_", "OMP_NUM"))}
    rows.extend((f"env {name}", value) for name, value in sorted(variables.items()))
    return tabulate(rows) + "\n" + torch.__config__.show()
