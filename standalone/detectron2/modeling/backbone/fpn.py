"""Feature pyramid network (Lin et al., 2017)."""

import math
from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone

__all__ = ["FPN", "LastLevelMaxPool", "LastLevelP6P7"]


class FPN(Backbone):
    """Top-down pyramid: maps ``p<k>`` of one width from those of another backbone.

    Args:
        bottom_up: the backbone.
        in_features: its outputs to use, finest first; strides double from one to the next.
        out_channels: channels of all outputs.
        norm: see :func:`detectron2.layers.get_norm`.
        top_block: makes further, coarser levels; has ``num_levels`` and ``in_feature``.
        fuse_type: "sum" or "avg" of the lateral and the upsampled map.
        square_pad: side that images are padded to as a square; 0 for none.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: Any = "",
        top_block: Any = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        super().__init__()
        assert in_features, in_features
        assert fuse_type in {"avg", "sum"}
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride or 0 for name in in_features]
        self._out_feature_strides = pyramid_strides(strides, top_block)

        laterals, outputs = [], []
        for name, stride in zip(in_features, strides, strict=True):
            lateral = Conv2d(
                shapes[name].channels,
                out_channels,
                kernel_size=1,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
            )
            output = Conv2d(
                out_channels,
                out_channels,
                kernel_size=3,
                stride=1,
                padding=1,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
            )
            weight_init.c2_xavier_fill(lateral)
            weight_init.c2_xavier_fill(output)
            level = int(math.log2(stride))
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            laterals.append(lateral)
            outputs.append(output)
        self.lateral_convs = laterals[::-1]
        self.output_convs = outputs[::-1]
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        self._fuse_type = fuse_type
        self._square_pad = square_pad
        self._size_divisibility = strides[-1]
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest map that is upsampled."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Side of the square that images are padded to, if any."""
        return {"square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [B, C, H, W] to ``p<k>`` maps [B, out_channels, H / 2^k, W / 2^k]."""
        features = self.bottom_up(x)
        results: list[Tensor] = []
        previous: Tensor | None = None
        for name, lateral, output in zip(
            self.in_features[::-1], self.lateral_convs, self.output_convs, strict=True
        ):
            merged = lateral(features[name])
            if previous is not None:
                merged = merged + F.interpolate(previous, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    merged = merged / 2
            previous = merged
            results.insert(0, output(merged))
        return name_levels(results, self._out_features, features, self.top_block)


def pyramid_strides(strides: Sequence[int], top_block: Any) -> dict[str, int]:
    """Name the levels ``p<k>`` after their strides ``2 ** k``, those of the top block included.

    Raises:
        AssertionError: strides do not double from one level to the next.
    """
    for fine, coarse in zip(strides, strides[1:], strict=False):
        assert coarse == 2 * fine, f"Strides {fine} {coarse} are not log2 contiguous"
    levels = top_block.num_levels if top_block is not None else 0
    further = [strides[-1] << more for more in range(1, levels + 1)]
    return {f"p{int(math.log2(stride))}": stride for stride in (*strides, *further)}


def name_levels(
    results: list[Tensor], names: Sequence[str], features: dict[str, Tensor], top_block: Any
) -> dict[str, Tensor]:
    """Return a pyramid's maps by name, with those of the top block.

    Args:
        results: maps of the pyramid, finest first.
        names: of all levels.
        features: maps that the pyramid was made from, for the top block.
        top_block: see :class:`FPN`, or None.
    """
    if top_block is not None:
        base = features.get(top_block.in_feature)
        if base is None:
            base = results[names.index(top_block.in_feature)]
        results = [*results, *top_block(base)]
    return dict(zip(names, results, strict=True))


class LastLevelMaxPool(nn.Module):
    """Make P6 by subsampling P5."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the coarser map."""
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


class LastLevelP6P7(nn.Module):
    """Make P6 and P7 by convolutions with stride 2 (RetinaNet)."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for module in (self.p6, self.p7):
            weight_init.c2_xavier_fill(module)

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Return the two coarser maps."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]
