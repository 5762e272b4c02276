"""The padding that a backbone needs to see every row and column of its images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

Size = tuple[int, int]
_DIVISOR_KEYS = ("size_divisibility", "size_divisiblity")  # detectron2's pyramid has a typo


@dataclass(frozen=True)
class PaddingRule:
    """The input sizes that a backbone accepts.

    Attributes:
        divisor: height and width are padded to multiples of it.
        square: side of the square that all images are padded to; 0 for none.
    """

    divisor: int = 1
    square: int = 0

    @classmethod
    def of(cls, backbone: nn.Module) -> PaddingRule:
        """Read a backbone's constraints.

        These are detectron2's ``padding_constraints`` and, if there are any, its
        ``size_divisibility``. The latter alone is ignored: Swin declares it for detectron2's
        pyramid, accepts any size, and gets unpadded images from upstream's detectors. A backbone
        with non-overlapping patches (a convolution ``patch_embed.proj`` whose stride is its kernel)
        would drop the rows and columns beyond the last whole patch, so images are padded to whole
        patches even if it declares nothing.

        Args:
            backbone: any module.
        """
        constraints = getattr(backbone, "padding_constraints", None)
        if not isinstance(constraints, Mapping):
            constraints = {}
        asked = [constraints.get(key, 0) for key in _DIVISOR_KEYS]
        if constraints and not any(asked):
            asked.append(getattr(backbone, "size_divisibility", 0))
        divisors = [int(number) for number in (*asked, *_patch_sides(backbone)) if number]
        return cls(math.lcm(1, *divisors), int(constraints.get("square_size", 0)))

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Return the height and width that images of these sizes are padded to together.

        Raises:
            ValueError: an image is larger than the square.
        """
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        if self.square:
            if max(height, width) > self.square:
                raise ValueError(
                    f"an image of {height} x {width} pixels does not fit into the backbone's "
                    f"square of {self.square}: resize images to at most {self.square} pixels, or "
                    "give the backbone a larger square_pad"
                )
            height = width = self.square
        return height + -height % self.divisor, width + -width % self.divisor


def _patch_sides(backbone: nn.Module) -> list[int]:
    """Return height and width of a backbone's patches; empty if they overlap."""
    projection = getattr(getattr(backbone, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.padding not in ((0, 0), "valid"):
        return []
    if projection.kernel_size != projection.stride:
        return []
    return [int(side) for side in projection.stride]
