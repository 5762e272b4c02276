"""Convolution followed by normalization and activation."""

from functools import partial
from typing import Any

import torch
from torch import nn


class ConvNormAct(nn.Module):
    """2-D convolution, normalization and activation; the last two are optional.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel in pixels.
        stride: step of the kernel in pixels.
        padding: zeros added to each side of the input.
        dilation: distance between kernel elements.
        groups: number of independent channel groups.
        bias: add a bias to the convolution.
        norm_layer: module applied to the convolution's output, held as given (not copied).
        activation: module applied last, held as given.
        **kwargs: further arguments of ``torch.nn.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        norm_layer: nn.Module | None = None,
        activation: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            **kwargs,
        )
        self.norm = norm_layer
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H', W']."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


ConvNorm = partial(ConvNormAct, activation=None)
