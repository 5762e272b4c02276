"""Changes of size, fixed and random."""

from collections.abc import Sequence

import numpy as np
from detectron2.data.transforms.augmentation import Augmentation
from detectron2.data.transforms.transform import (
    ResizeTransform,
)
from fvcore.transforms.transform import (
    NoOpTransform,
    Transform,
)
from PIL import Image

__all__ = ["RandomResize", "Resize", "ResizeScale", "ResizeShortestEdge"]

_BILINEAR = int(Image.Resampling.BILINEAR)


class Resize(Augmentation):
    """Resize to a fixed size.

    Args:
        shape: (h, w), or one int for both.
        interp: Pillow resampling filter.
    """

    def __init__(self, shape: int | tuple[int, int], interp: int = _BILINEAR) -> None:
        new_height, new_width = (shape, shape) if isinstance(shape, int) else shape
        self.shape = (new_height, new_width)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        return ResizeTransform(height, width, self.shape[0], self.shape[1], self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale so that the shorter side gets a chosen length, the longer one at most ``max_size``.

    The aspect ratio is kept; if ``max_size`` would be exceeded, the longer side gets that length.

    Args:
        short_edge_length: (min, max) for ``"range"``, the possible lengths for ``"choice"``, or one
            int. A length of 0 leaves the image alone.
        max_size: upper limit of the longer side.
        sample_style: ``"range"`` draws an integer between the two, inclusive; ``"choice"`` one of
            the lengths.
        interp: Pillow resampling filter.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: float = 9223372036854775807,
        sample_style: str = "range",
        interp: int = _BILINEAR,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), sample_style
        lengths = (
            (short_edge_length, short_edge_length)
            if isinstance(short_edge_length, int)
            else tuple(short_edge_length)
        )
        self.is_range = sample_style == "range"
        assert not self.is_range or len(lengths) == 2, (
            f"sample_style='range' takes the two ends of short_edge_length, not {lengths}"
        )
        self.short_edge_length = lengths
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self.is_range:
            low, high = self.short_edge_length
            size = int(np.random.randint(low, high + 1))
        else:
            size = int(np.random.choice(self.short_edge_length))
        if size == 0:
            return NoOpTransform()
        new_height, new_width = self.get_output_shape(height, width, size, self.max_size)
        return ResizeTransform(height, width, new_height, new_width, self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: float
    ) -> tuple[int, int]:
        """Return the output's (h, w), rounded to the nearest pixel."""
        scale = short_edge_length / min(oldh, oldw)
        new_height, new_width = scale * oldh, scale * oldw
        if max(new_height, new_width) > max_size:
            shrink = max_size / max(new_height, new_width)
            new_height, new_width = new_height * shrink, new_width * shrink
        # A very long image keeps at least one pixel of its short side.
        return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


class ResizeScale(Augmentation):
    """Fit the image into a target size multiplied by a random factor, keeping the aspect ratio.

    Args:
        min_scale, max_scale: range of the factor.
        target_height, target_width: the target at factor 1.
        interp: Pillow resampling filter.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = _BILINEAR,
    ) -> None:
        super().__init__()
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.target_height = target_height
        self.target_width = target_width
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        factor = np.random.uniform(self.min_scale, self.max_scale)
        height, width = image.shape[:2]
        scale = min(self.target_height * factor / height, self.target_width * factor / width)
        new_height, new_width = (max(int(np.rint(n * scale)), 1) for n in (height, width))
        return ResizeTransform(height, width, new_height, new_width, self.interp)


class RandomResize(Augmentation):
    """Resize to one of several (h, w), drawn at random."""

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = _BILINEAR) -> None:
        self.shape_list = shape_list
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = self.shape_list[np.random.randint(len(self.shape_list))]
        return ResizeTransform(image.shape[0], image.shape[1], height, width, self.interp)
