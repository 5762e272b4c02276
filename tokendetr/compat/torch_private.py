"""Private names of PyTorch, checked with torch 2.13 and 2.14.

A release of PyTorch that moves one of them breaks here, loudly, and nowhere else:
``tests/compat/test_torch_private.py`` calls each.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
    "function_is_transformed",
    "has_forward_hooks",
    "onednn_convolution",
    "onednn_convolution_and_sum",
    "onednn_convolution_onto",
    "onednn_linear",
    "onednn_linear_and_sum",
    "onednn_multiplies_bfloat16",
    "onednn_packed_convolution_weight",
    "onednn_packed_linear_weight",
    "tree_map_only",
    "without_torchvision_warnings",
]

disable_current_modes = _disable_current_modes
"""Context manager that disables all dispatch modes."""

current_dispatch_mode = _get_current_dispatch_mode
"""Return the innermost active dispatch mode, or None."""

current_function_mode = _get_current_function_mode
"""Return the innermost active torch-function mode, or None."""

_LINEAR: Any = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


def onednn_linear() -> Any:
    """Return oneDNN's linear layer; None if the build lacks it.

    It is called with ``(x, weight, bias, "none", "relu" or "gelu", [], "" or GELU's form)``.
    """
    return _LINEAR


def onednn_linear_and_sum() -> Any:
    """Return oneDNN's fused linear layer and sum with ``other``, of the output's shape and dtype.

    It is called with ``(x, other, weight, bias, "add")``.
    """
    return _LINEAR.binary


def onednn_packed_linear_weight() -> Any:
    """Return the function that brings a linear layer's weights into oneDNN's layout, or None.

    It is called with ``(weight, rows)``, the number of rows that products will have about; None if
    the build lacks it.
    """
    return getattr(getattr(torch.ops, "mkldnn", None), "_reorder_linear_weight", None)


_CONVOLUTION: Any = getattr(getattr(torch.ops, "mkldnn", None), "_convolution_pointwise", None)


def onednn_convolution() -> Any:
    """Return oneDNN's convolution; None if the build lacks it.

    It is called with ``(x, weight, bias, padding, stride, dilation, groups, "none" or "relu", [],
    "")``.
    """
    return _CONVOLUTION


def onednn_convolution_and_sum() -> Any:
    """Return oneDNN's fused convolution of ``x``, sum with ``other`` and activation.

    It is called with ``(x, other, weight, bias, padding, stride, dilation, groups, "add", 1.0,
    "relu", [], "")``.
    """
    return _CONVOLUTION.binary


def onednn_convolution_onto() -> Any:
    """Return oneDNN's fused convolution that adds to ``other`` in place, or None.

    It is called with ``(other, x, ...)`` and the other arguments of
    :func:`onednn_convolution_and_sum`.
    """
    packet = getattr(getattr(torch.ops, "mkldnn", None), "_convolution_pointwise_", None)
    return getattr(packet, "binary", None)


def onednn_packed_convolution_weight() -> Any:
    """Return the function that brings a convolution's weights into oneDNN's layout, or None.

    It is called with ``(weight, padding, stride, dilation, groups, input shape)``, of about the
    inputs to come; None if the build lacks it.
    """
    return getattr(getattr(torch.ops, "mkldnn", None), "_reorder_convolution_weight", None)


def onednn_multiplies_bfloat16() -> bool:
    """Return whether oneDNN multiplies matrices in bfloat16 on this processor."""
    supported = getattr(getattr(torch.ops, "mkldnn", None), "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def function_is_transformed() -> bool:
    """Return whether a transform of ``torch.func`` (grad, vmap, jvp, ...) runs this code.

    False while ``torch.compile`` traces it, which cannot look there.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether a module has forward hooks or forward pre-hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


@contextmanager
def without_torchvision_warnings() -> Iterator[None]:
    """Silence the ONNX exporter about torchvision's operators, which no detector here uses."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")

    def is_of_interest(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger.addFilter(is_of_interest)
    try:
        yield
    finally:
        logger.removeFilter(is_of_interest)
