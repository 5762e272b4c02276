"""Conditions for the fast forms of layers, and their precision."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tokendetr.compat.torch_private import (
    current_dispatch_mode,
    current_function_mode,
    onednn_multiplies_bfloat16,
)


def working_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the dtype in which a layer's fast form may compute, or None.

    Args:
        x: the input.
        weight: of the layer.

    Returns:
        float32, or bfloat16 under autocast or with bfloat16 weights. None if the layer must run
        PyTorch's own form: with gradients, on other devices or in other precisions, and under
        compilers, tracers, operation counters and other dispatch or function modes.
    """
    if (
        torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or x.numel() == 0
        or torch.is_grad_enabled()
        or torch.jit.is_tracing()
        or not torch.backends.mkldnn.enabled
        or current_dispatch_mode() is not None
        or current_function_mode() is not None
    ):
        return None
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if dtype != torch.bfloat16 or x.dtype not in (torch.float32, torch.bfloat16):
            return None
    else:
        dtype = x.dtype
        if dtype not in (torch.float32, torch.bfloat16) or weight.dtype != dtype:
            return None
    return dtype if dtype == torch.float32 or onednn_multiplies_bfloat16() else None


@cache
def mkl_uses_all_vectors() -> bool:
    """Return True on Intel's processors: on others, MKL uses vectors of half the width."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
