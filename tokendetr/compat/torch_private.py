"""Private names of PyTorch, checked with torch 2.13 and 2.14.

A release of PyTorch that moves one of them breaks here, loudly, and nowhere else:
``tests/compat/test_torch_private.py`` calls each.
"""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode,
)
from torch.utils._pytree import tree_map_only

__all__ = [
    "FakeTensor",
    "TorchDispatchMode",
    "current_dispatch_mode",
    "current_function_mode",
    "disable_current_modes",
    "has_forward_hooks",
    "onednn_convolution",
    "onednn_convolution_and_sum",
    "onednn_linear",
    "onednn_multiplies_bfloat16",
    "tree_map_only",
]

disable_current_modes = _disable_current_modes
"""Context manager inside which no dispatch mode watches the operators."""

current_dispatch_mode = _get_current_dispatch_mode
"""Return the dispatch mode that watches the operators, or None."""

current_function_mode = _get_current_function_mode
"""Return the mode that stands between callers and PyTorch's functions, or None."""

_LINEAR = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


def onednn_linear() -> Any:
    """Return oneDNN's product ``(x, weight, bias, "none", [], "")``; None in builds without it."""
    return _LINEAR


_CONVOLUTION: Any = getattr(getattr(torch.ops, "mkldnn", None), "_convolution_pointwise", None)


def onednn_convolution() -> Any:
    """Return oneDNN's convolution ``(x, weight, bias, padding, stride, dilation, groups, "none" or
    "relu", [], "")``; None in builds without it."""
    return _CONVOLUTION


def onednn_convolution_and_sum() -> Any:
    """Return oneDNN's convolution of ``x`` plus another tensor, then an activation: ``(x, other,
    weight, bias, padding, stride, dilation, groups, "add", 1.0, "relu", [], "")``."""
    return _CONVOLUTION.binary


def onednn_multiplies_bfloat16() -> bool:
    """Return whether oneDNN has products in bfloat16 for this processor."""
    supported = getattr(getattr(torch.ops, "mkldnn", None), "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether anybody listens to a module's calls."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
