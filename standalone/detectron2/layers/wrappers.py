"""Thin wrappers over torch layers, and helpers for tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "cat",
    "cross_entropy",
    "interpolate",
    "move_device_like",
    "nonzero_tuple",
]

ConvTranspose2d = nn.ConvTranspose2d
BatchNorm2d = nn.BatchNorm2d
interpolate = F.interpolate
Linear = nn.Linear


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors; a single tensor is returned without a copy."""
    assert isinstance(tensors, (list, tuple))
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat(list(tensors), dim)


def cross_entropy(
    input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any
) -> Tensor:
    """``F.cross_entropy`` with a mean over no elements of differentiable 0 instead of NaN."""
    if target.numel() == 0 and reduction == "mean":
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


def move_device_like(src: Tensor, dst: Tensor) -> Tensor:
    """Return ``src`` on the device of ``dst``."""
    return src.to(dst.device)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """Return ``x.nonzero(as_tuple=True)``."""
    return x.nonzero(as_tuple=True)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` followed by an optional norm and an optional activation.

    Takes all arguments of ``nn.Conv2d`` and two keywords:

    Args:
        norm: a module applied to the output of the convolution, or None.
        activation: a callable applied last, or None.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        norm: nn.Module | None = kwargs.pop("norm", None)
        activation: Callable[[Tensor], Tensor] | None = kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H', W']."""
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x
