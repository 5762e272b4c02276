"""Random changes of geometry: flips, sizes, crops, rotations."""
# Over 350 lines: a transform and its inverse stand together, one after the other.

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data.transforms.augmentation import Augmentation, _as_augmentation
from detectron2.data.transforms.transform import (
    CropTransform,
    ExtentTransform,
    ResizeTransform,
    RotationTransform,
)
from fvcore.transforms.transform import (
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

__all__ = [
    "FixedSizeCrop",
    "RandomApply",
    "RandomCrop",
    "RandomExtent",
    "RandomFlip",
    "RandomResize",
    "RandomRotation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]

_BILINEAR = int(Image.Resampling.BILINEAR)


class RandomApply(Augmentation):
    """Apply another augmentation (or transform) with a probability.

    Args:
        tfm_or_aug: the augmentation or transform.
        prob: probability in [0, 1].
    """

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        super().__init__()
        assert 0.0 <= prob <= 1.0, f"Probability must be between 0.0 and 1.0 (given: {prob})"
        self.aug = _as_augmentation(tfm_or_aug)
        self.prob = prob
        self.input_args = self.aug.input_args

    def _skips(self) -> bool:
        return bool(self._rand_range() >= self.prob)

    def get_transform(self, *args: Any) -> Transform:
        return NoOpTransform() if self._skips() else self.aug.get_transform(*args)

    def __call__(self, aug_input: Any) -> Transform:
        return NoOpTransform() if self._skips() else self.aug(aug_input)


class RandomFlip(Augmentation):
    """Flip horizontally or vertically with a probability.

    Args:
        prob: probability of a flip.
        horizontal, vertical: the direction; exactly one must be set.
    """

    def __init__(
        self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False
    ) -> None:
        super().__init__()
        if horizontal and vertical:
            raise ValueError("Cannot do both horiz and vert. Please use two Flip instead.")
        if not horizontal and not vertical:
            raise ValueError("At least one of horiz or vert has to be True!")
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        if self.horizontal:
            return HFlipTransform(width)
        return VFlipTransform(height)


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
            f"short_edge_length must be two values using 'range' sample style. Got {lengths}!"
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


class RandomRotation(Augmentation):
    """Rotate by a random angle.

    Args:
        angle: (min, max) degrees for ``"range"``, or the possible angles for ``"choice"``.
        expand: grow the output to hold the whole rotated image.
        center: for ``"range"`` two corners ((x0, y0), (x1, y1)) of a relative box from which the
            fixed point is drawn, for ``"choice"`` the possible points; relative to the image.
        sample_style: ``"range"`` or ``"choice"``.
        interp: Pillow resampling filter.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[tuple[float, float]] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), sample_style
        self.is_range = sample_style == "range"
        self.angle = (angle, angle) if isinstance(angle, (int, float)) else tuple(angle)
        self.expand = expand
        self.center = center
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        center = None
        if self.is_range:
            angle = float(np.random.uniform(self.angle[0], self.angle[1]))
            if self.center is not None:
                low, high = self.center[0], self.center[1]
                center = (np.random.uniform(low[0], high[0]), np.random.uniform(low[1], high[1]))
        else:
            angle = float(np.random.choice(self.angle))
            if self.center is not None:
                center = self.center[np.random.randint(len(self.center))]
        if center is not None:
            center = (width * center[0], height * center[1])
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(height, width, angle, self.expand, center, self.interp)


class RandomCrop(Augmentation):
    """Cut a random rectangle out of the image.

    Args:
        crop_type: meaning of ``crop_size``:
            ``"relative"``: (height, width) as shares of the image in (0, 1];
            ``"relative_range"``: the smallest shares, the actual ones are drawn up to 1;
            ``"absolute"``: pixels, cut down to the image's size;
            ``"absolute_range"``: (min, max) pixels, drawn for each side.
        crop_size: two numbers.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        super().__init__()
        assert crop_type in ("relative_range", "relative", "absolute", "absolute_range"), crop_type
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((height, width))
        assert height >= crop_h and width >= crop_w, (
            f"RandomCrop asks for {(crop_h, crop_w)} pixels of an image of {(height, width)}: "
            "relative sizes must be at most 1"
        )
        top = int(np.random.randint(height - crop_h + 1))
        left = int(np.random.randint(width - crop_w + 1))
        return CropTransform(left, top, crop_w, crop_h, width, height)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw the (height, width) of the crop for an image of ``image_size``."""
        height, width = image_size
        if self.crop_type == "absolute":
            return min(int(self.crop_size[0]), height), min(int(self.crop_size[1]), width)
        if self.crop_type == "absolute_range":
            low, high = int(self.crop_size[0]), int(self.crop_size[1])
            assert low <= high, f"crop_size must be (min, max), got {self.crop_size}"
            crop_h = int(np.random.randint(min(height, low), min(height, high) + 1))
            crop_w = int(np.random.randint(min(width, low), min(width, high) + 1))
            return crop_h, crop_w
        share = np.asarray(self.crop_size, dtype=np.float64)
        if self.crop_type == "relative_range":
            share = share + np.random.rand(2) * (1 - share)
        return int(height * share[0] + 0.5), int(width * share[1] + 0.5)


class FixedSizeCrop(Augmentation):
    """Crop at random to a size, and pad smaller images at the right and the bottom.

    Args:
        crop_size: (height, width) of the result.
        pad: pad at all.
        pad_value: value of padded pixels.
        seg_pad_value: label of padded pixels in a segmentation.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        super().__init__()
        self.crop_size = crop_size
        self.pad = pad
        self.pad_value = pad_value
        self.seg_pad_value = seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        height, width = image.shape[:2]
        crop_h, crop_w = self.crop_size
        room = np.maximum((height - crop_h, width - crop_w), 0)
        top, left = np.round(room * np.random.uniform(0.0, 1.0)).astype(int)
        kept_h, kept_w = min(height, crop_h), min(width, crop_w)
        transforms: list[Transform] = [
            CropTransform(int(left), int(top), kept_w, kept_h, width, height)
        ]
        if self.pad:
            missing_h, missing_w = max(crop_h - height, 0), max(crop_w - width, 0)
            transforms.append(
                PadTransform(
                    0, 0, missing_w, missing_h, kept_w, kept_h, self.pad_value, self.seg_pad_value
                )
            )
        return TransformList(transforms)


class RandomExtent(Augmentation):
    """Cut a rectangle around a random center, larger or smaller than the image, padded with black.

    Args:
        scale_range: (min, max) factor of the rectangle's size to the image's.
        shift_range: (x, y) largest shift of the center as a share of the image's size.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        super().__init__()
        self.scale_range = scale_range
        self.shift_range = shift_range

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(self.scale_range[0], self.scale_range[1])
        shift = np.asarray(self.shift_range) * (np.random.rand(2) - 0.5)
        center_x, center_y = width * (0.5 + shift[0]), height * (0.5 + shift[1])
        half_w, half_h = 0.5 * width * scale, 0.5 * height * scale
        rect = (center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h)
        size = (int(rect[3] - rect[1]), int(rect[2] - rect[0]))
        return ExtentTransform(src_rect=rect, output_size=size)
