"""Autocast rule of the operators: values in low precision, everything else in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DEVICE_TYPES = ("cpu", "cuda")


def autocasts(tensor: Tensor) -> bool:
    """Return True if autocast is on for a tensor's device."""
    kind = tensor.device.type
    return kind in DEVICE_TYPES and torch.is_autocast_enabled(kind)


@contextmanager
def without_autocast(kind: str) -> Iterator[None]:
    """Turn autocast off for a device type on which it is on.

    Cheaper than ``torch.autocast(enabled=False)``, for the operators' autocast kernels.
    """
    torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, True)


def _casts(tensor: Tensor, kind: str) -> bool:
    is_wide = tensor.dtype == torch.float64
    return tensor.is_floating_point() and not is_wide and tensor.device.type == kind


def low(tensor: Tensor, kind: str) -> Tensor:
    """Cast a floating tensor of a device to the dtype of autocast; float64 stays."""
    return tensor.to(torch.get_autocast_dtype(kind)) if _casts(tensor, kind) else tensor


def wide(tensor: Tensor, kind: str) -> Tensor:
    """Cast a floating tensor of a device to float32; float64 stays."""
    return tensor.to(torch.float32) if _casts(tensor, kind) else tensor
