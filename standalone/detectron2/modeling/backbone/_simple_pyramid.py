"""Simple feature pyramid (ViTDet, Li et al., 2022)."""

import math
from collections.abc import Sequence
from typing import Any

from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone
from .fpn import name_levels, pyramid_strides

__all__ = ["SimpleFeaturePyramid"]


class SimpleFeaturePyramid(Backbone):
    """Feature maps ``p<k>`` of several strides, all made from the last map of a plain backbone.

    Args:
        net: the backbone.
        in_feature: name of its map.
        out_channels: channels of all outputs.
        scale_factors: sides of the outputs divided by the map's, largest first: 4, 2, 1, .5.
        top_block: makes further, coarser levels; has ``num_levels`` and ``in_feature``.
        norm: see :func:`detectron2.layers.get_norm`.
        square_pad: side that images are padded to as a square; 0 for none.

    Raises:
        NotImplementedError: for another scale factor.
    """

    def __init__(
        self,
        net: Backbone,
        in_feature: str,
        out_channels: int,
        scale_factors: Sequence[float],
        top_block: Any = None,
        norm: Any = "LN",
        square_pad: int = 0,
    ) -> None:
        super().__init__()
        shape = net.output_shape()[in_feature]
        strides = [int((shape.stride or 0) / scale) for scale in scale_factors]
        self.stages = []
        for scale, stride in zip(scale_factors, strides, strict=True):
            resize, channels = _resize(scale, shape.channels or 0, norm)
            settings = {"bias": norm == ""}
            reduce = Conv2d(
                channels, out_channels, kernel_size=1, norm=get_norm(norm, out_channels), **settings
            )
            smooth = Conv2d(
                out_channels,
                out_channels,
                kernel_size=3,
                padding=1,
                norm=get_norm(norm, out_channels),
                **settings,
            )
            stage = nn.Sequential(*resize, reduce, smooth)
            self.add_module(f"simfp_{int(math.log2(stride))}", stage)
            self.stages.append(stage)
        self.net = net
        self.in_feature = in_feature
        self.top_block = top_block
        self._size_divisibility = strides[-1]
        self._square_pad = square_pad
        self._out_feature_strides = pyramid_strides(strides, top_block)
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Stride of the coarsest map made here, and the side of ``square_pad``, if any."""
        return {"size_divisiblity": self._size_divisibility, "square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [B, C, H, W] to ``p<k>`` maps [B, out_channels, H / 2^k, W / 2^k].

        Sides shorter than a cell of the coarsest map made here are padded with zeros to one.
        """
        missing = [max(0, self._size_divisibility - side) for side in x.shape[2:]]
        if any(missing):
            x = F.pad(x, (0, missing[1], 0, missing[0]))
        maps = self.net(x)
        results = [stage(maps[self.in_feature]) for stage in self.stages]
        return name_levels(results, self._out_features, maps, self.top_block)


def _resize(scale: float, channels: int, norm: Any) -> tuple[list[nn.Module], int]:
    """Return layers that change a map's sides by ``scale``, and the channels after them."""
    half, quarter = channels // 2, channels // 4
    if scale == 4.0:
        up: list[Any] = [
            nn.ConvTranspose2d(channels, half, kernel_size=2, stride=2),
            get_norm(norm, half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2),
        ]
        return up, quarter
    if scale == 2.0:
        return [nn.ConvTranspose2d(channels, half, kernel_size=2, stride=2)], half
    if scale == 1.0:
        return [], channels
    if scale == 0.5:
        return [nn.MaxPool2d(kernel_size=2, stride=2)], channels
    raise NotImplementedError(f"scale_factor={scale} is none of 4, 2, 1 and 0.5")


# Saved configs name a class by its module, and detectron2 has this one in `vit`.
SimpleFeaturePyramid.__module__ = f"{__package__}.vit"
