"""The padding that a backbone needs to see every row and column of its images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

Size = tuple[int, int]
IMAGE_CHANNELS = 3
_DIVISOR_KEYS = ("size_divisibility", "size_divisiblity")  # detectron2's pyramid has a typo


@dataclass(frozen=True)
class PaddingRule:
    """The input sizes that a backbone accepts.

    Attributes:
        divisor: height and width are padded to multiples of it.
        square: side of the square that all images are padded to; 0 for none.
        minimum: smallest height and width: below it, a stage would get less than one patch.
    """

    divisor: int = 1
    square: int = 0
    minimum: int = 1

    @classmethod
    def of(cls, backbone: nn.Module) -> PaddingRule:
        """Read a backbone's constraints.

        These are detectron2's ``padding_constraints`` and, if there are any, its
        ``size_divisibility``. The latter alone is ignored: Swin declares it for detectron2's
        pyramid, accepts any size, and gets unpadded images from upstream's detectors. A backbone
        with non-overlapping patches (its first convolution of the image has its kernel as stride,
        as in ViT, Swin and ConvNeXt) would drop the rows and columns beyond the last whole patch,
        so images are padded to whole patches even if it declares nothing.

        Args:
            backbone: any module.
        """
        constraints = getattr(backbone, "padding_constraints", None)
        if not isinstance(constraints, Mapping):
            constraints = {}
        asked = [constraints.get(key, 0) for key in _DIVISOR_KEYS]
        if constraints and not any(asked):
            asked.append(getattr(backbone, "size_divisibility", 0))
        sides, minimum = _patches(backbone)
        divisors = [int(number) for number in (*asked, *sides) if number]
        return cls(math.lcm(1, *divisors), int(constraints.get("square_size", 0)), minimum)

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Return the height and width that images of these sizes are padded to together.

        Raises:
            ValueError: an image is larger than the square.
        """
        height = max(self.minimum, *(h for h, _ in sizes))
        width = max(self.minimum, *(w for _, w in sizes))
        if self.square:
            if max(height, width) > self.square:
                raise ValueError(
                    f"an image of {height} x {width} pixels does not fit into the backbone's "
                    f"square of {self.square}: resize images to at most {self.square} pixels, or "
                    "give the backbone a larger square_pad"
                )
            height = width = self.square
        return height + -height % self.divisor, width + -width % self.divisor


def _patches(backbone: nn.Module) -> tuple[tuple[int, ...], int]:
    """Return height and width of the patches that a backbone reads, and the smallest image's side.

    Patches that overlap need neither: nothing, and 1.
    """
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    first = next((each for each in convolutions if each.in_channels == IMAGE_CHANNELS), None)
    if first is None or not _separates(first):
        return (), 1
    return first.stride, math.prod(max(each.stride) for each in convolutions if _separates(each))


def _separates(convolution: nn.Conv2d) -> bool:
    """Return True if the windows of a convolution touch without overlap."""
    unpadded = convolution.padding in ((0, 0), "valid")
    return unpadded and convolution.kernel_size == convolution.stride
