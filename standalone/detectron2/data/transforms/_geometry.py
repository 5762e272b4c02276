"""Random flips, rotations and crops."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data.transforms.augmentation import Augmentation, _as_augmentation
from detectron2.data.transforms.transform import (
    CropTransform,
    ExtentTransform,
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
    "RandomRotation",
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
        assert 0.0 <= prob <= 1.0, f"prob is in [0, 1], not {prob}"
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
            raise ValueError("One RandomFlip flips in one direction; use two for both.")
        if not horizontal and not vertical:
            raise ValueError("RandomFlip needs one of horizontal=True and vertical=True.")
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
