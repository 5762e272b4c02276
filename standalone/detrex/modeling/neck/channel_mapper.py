"""Neck that maps all features to one number of channels and adds coarser ones."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detrex.layers import ConvNormAct
from torch import nn


class ChannelMapper(nn.Module):
    """A convolution per backbone feature, and stride-2 convolutions for further, coarser maps.

    The first extra map is made from the last backbone feature, each further one from the one
    before.

    Args:
        input_shapes: shape of each backbone feature by name; only ``channels`` is used.
        in_features: names of the features that are mapped, finest first.
        out_channels: channels of every output.
        kernel_size: side of the kernels that map backbone features.
        stride: stride of these kernels.
        bias: add a bias to the convolutions.
        groups: channel groups of all convolutions.
        dilation: dilation of all convolutions.
        norm_layer: module after each convolution, copied for each.
        activation: module after the norm, copied for each.
        num_outs: number of outputs, by default as many as ``input_shapes``.
        **kwargs: ignored.

    Raises:
        KeyError: a feature is missing from ``input_shapes``.
    """

    def __init__(
        self,
        input_shapes: Mapping[str, Any],
        in_features: Sequence[str],
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = True,
        groups: int = 1,
        dilation: int = 1,
        norm_layer: nn.Module | None = None,
        activation: nn.Module | None = None,
        num_outs: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        missing = [name for name in in_features if name not in input_shapes]
        if missing:
            raise KeyError(
                f"in_features {missing} are not among input_shapes {sorted(input_shapes)}"
            )

        def conv(in_channels: int, kernel_size: int, stride: int) -> ConvNormAct:
            return ConvNormAct(
                in_channels=in_channels,
                out_channels=out_channels,
                kernel_size=kernel_size,
                stride=stride,
                padding=(kernel_size - 1) // 2,
                dilation=dilation,
                groups=groups,
                bias=bias,
                norm_layer=copy.deepcopy(norm_layer),
                activation=copy.deepcopy(activation),
            )

        in_channels = [input_shapes[name].channels for name in in_features]
        self.convs = nn.ModuleList(conv(channels, kernel_size, stride) for channels in in_channels)
        num_extra = (len(input_shapes) if num_outs is None else num_outs) - len(in_channels)
        self.extra_convs: nn.ModuleList | None = None
        if num_extra > 0:
            extra_channels = [in_channels[-1], *[out_channels] * (num_extra - 1)]
            self.extra_convs = nn.ModuleList(conv(channels, 3, 2) for channels in extra_channels)
        self.input_shapes = input_shapes
        self.in_features = in_features
        self.out_channels = out_channels

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Map backbone features by name to maps [B, out_channels, h, w], finest first."""
        outputs = [
            conv(inputs[name]) for conv, name in zip(self.convs, self.in_features, strict=True)
        ]
        coarsest = inputs[self.in_features[-1]]
        for conv in self.extra_convs or ():
            coarsest = conv(coarsest)
            outputs.append(coarsest)
        return tuple(outputs)
