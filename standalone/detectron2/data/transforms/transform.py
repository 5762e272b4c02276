"""Transforms beyond fvcore's: resize, extent, rotation and color, on Pillow and torch alone."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform as _CropTransform
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = [
    "ColorTransform",
    "CropTransform",
    "ExtentTransform",
    "PILColorTransform",
    "ResizeTransform",
    "RotationTransform",
]

_TORCH_MODES = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


def _to_pil(image: np.ndarray) -> Image.Image:
    """Convert a uint8 array HxW, HxWx1 or HxWx3 to a Pillow image."""
    if image.ndim == 3 and image.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(image[:, :, 0]))
    return Image.fromarray(np.ascontiguousarray(image))


def _like(image: np.ndarray, result: Image.Image) -> np.ndarray:
    """Restore as many axes as ``image`` has."""
    array = np.asarray(result)
    return array[:, :, None] if image.ndim == 3 and array.ndim == 2 else array


class ResizeTransform(Transform):
    """Resize an image to a fixed size.

    Args:
        h, w: size of the input.
        new_h, new_w: size of the output.
        interp: Pillow resampling filter; bilinear when None.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        if interp is None:
            interp = Image.Resampling.BILINEAR
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize: uint8 images with Pillow (antialiased), others with ``interpolate``."""
        assert img.shape[:2] == (self.h, self.w), (
            f"ResizeTransform was made for {(self.h, self.w)}, got an image {img.shape[:2]}"
        )
        assert img.ndim <= 4
        resample = Image.Resampling(self.interp if interp is None else interp)
        if img.dtype == np.uint8 and (img.ndim == 2 or img.shape[2] in (1, 3, 4)):
            return _like(img, _to_pil(img).resize((self.new_w, self.new_h), resample))
        return self._resize_with_torch(img, _TORCH_MODES[resample])

    def _resize_with_torch(self, img: np.ndarray, mode: str) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1)
        is_integer = not tensor.is_floating_point()
        source = tensor.to(torch.float64) if is_integer else tensor
        resized = F.interpolate(
            source.permute(2, 0, 1)[None],
            (self.new_h, self.new_w),
            mode=mode,
            align_corners=None if mode == "nearest" else False,
        )[0].permute(1, 2, 0)
        if is_integer:
            limits = torch.iinfo(tensor.dtype)
            resized = resized.round().clamp(limits.min, limits.max).to(tensor.dtype)
        return resized.reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w * 1.0 / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h * 1.0 / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def inverse(self) -> "ResizeTransform":
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


def _clip_polygon(polygon: np.ndarray, axis: int, bound: float, keep_above: bool) -> np.ndarray:
    """Return the part of a polygon ``[N, 2]`` on one side of an axis-parallel line.

    Source: Sutherland and Hodgman, "Reentrant polygon clipping", 1974.
    """
    distance = polygon[:, axis] - bound if keep_above else bound - polygon[:, axis]
    points = []
    for i in range(len(polygon)):
        # The edge from the point before to this one.
        before, here = distance[i - 1], distance[i]
        if (before >= 0) != (here >= 0):
            share = before / (before - here)
            points.append(polygon[i - 1] + share * (polygon[i] - polygon[i - 1]))
        if here >= 0:
            points.append(polygon[i])
    return np.array(points).reshape(-1, 2)


def _twice_area(polygon: np.ndarray) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))


class CropTransform(_CropTransform):
    """fvcore's crop, with polygons clipped without the shapely package.

    A polygon that the window cuts into several pieces stays one, its pieces joined along the
    window's border: the area is the same.
    """

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Cut polygons ``[N, 2]`` at the window; those without area inside are left out."""
        kept = []
        for polygon in polygons:
            cut = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
            for axis, low, size in ((0, self.x0, self.w), (1, self.y0, self.h)):
                cut = _clip_polygon(cut, axis, low, keep_above=True)
                cut = _clip_polygon(cut, axis, low + size, keep_above=False)
            if len(cut) >= 3 and _twice_area(cut) > 0:
                kept.append(self.apply_coords(cut))
        return kept


class ExtentTransform(Transform):
    """Cut a rectangle of the image, which may reach beyond it, and scale it to a size.

    Args:
        src_rect: (x0, y0, x1, y1) in pixels of the input; ``fill`` outside the image.
        output_size: (h, w) of the output.
        interp: Pillow resampling filter for images.
        fill: value outside the image.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.Resampling.BILINEAR,
        fill: int = 0,
    ) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        height, width = self.output_size
        result = _to_pil(img).transform(
            size=(width, height),
            method=Image.Transform.EXTENT,
            data=self.src_rect,
            resample=Image.Resampling(self.interp if interp is None else interp),
            fillcolor=self.fill if img.ndim == 2 or img.shape[2] == 1 else (self.fill,) * 3,
        )
        return _like(img, result)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        height, width = self.output_size
        x0, y0, x1, y1 = self.src_rect
        coords = coords.astype("float32")
        coords[:, 0] = (coords[:, 0] - x0) * (width / (x1 - x0))
        coords[:, 1] = (coords[:, 1] - y0) * (height / (y1 - y0))
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)


class RotationTransform(Transform):
    """Rotate an image about a point.

    Args:
        h, w: size of the input.
        angle: degrees, counter-clockwise as seen on the screen.
        expand: grow the output so that it holds the whole rotated image.
        center: (x, y) of the fixed point; the image's center when None. It does not change the
            image if ``expand`` is set.
        interp: Pillow resampling filter; bilinear when None.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        image_center = (w / 2, h / 2)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        self.h, self.w = h, w
        self.angle = angle
        self.expand = expand
        self.center = image_center if center is None else center
        self.interp = Image.Resampling.BILINEAR if interp is None else interp
        self.bound_h, self.bound_w = h, w
        if expand:
            self.bound_w = int(np.rint(h * abs(sin) + w * abs(cos)))
            self.bound_h = int(np.rint(h * abs(cos) + w * abs(sin)))
        # Screen axes: y grows downward, so a counter-clockwise turn maps x right to y up.
        self._rotation = np.array([[cos, sin], [-sin, cos]])
        pivot = np.asarray(image_center if expand else self.center, dtype=np.float64)
        target = np.array((self.bound_w / 2, self.bound_h / 2)) if expand else pivot
        self._offset = target - self._rotation @ pivot

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if img.size == 0 or self.angle % 360 == 0:
            return img
        back = self._rotation.T
        shift = -back @ self._offset
        result = _to_pil(img).transform(
            (self.bound_w, self.bound_h),
            Image.Transform.AFFINE,
            data=(back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1]),
            resample=Image.Resampling(self.interp if interp is None else interp),
        )
        return _like(img, result)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return coords @ self._rotation.T + self._offset

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def inverse(self) -> Transform:
        """Return the opposite rotation.

        Raises:
            NotImplementedError: without ``expand`` the corners are lost.
        """
        if not self.expand:
            raise NotImplementedError("a rotation without expand cannot be undone")
        turned_back = RotationTransform(
            self.bound_h, self.bound_w, -self.angle, True, None, self.interp
        )
        left = (turned_back.bound_w - self.w) // 2
        top = (turned_back.bound_h - self.h) // 2
        crop = CropTransform(left, top, self.w, self.h, turned_back.bound_w, turned_back.bound_h)
        return TransformList([turned_back, crop])


class ColorTransform(Transform):
    """Change pixel values with a function of the whole image; coordinates stay.

    Args:
        op: takes and returns an image array of the same shape.
    """

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        if not callable(op):
            raise ValueError(f"op should be callable, got {op!r}")
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """:class:`ColorTransform` with a function of Pillow images."""

    def __init__(self, op: Callable[[Image.Image], Image.Image]) -> None:
        super().__init__(op)  # type: ignore[arg-type]

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return _like(img, self.op(_to_pil(img)))


def _flip_rotated_box(transform: HFlipTransform, rotated_boxes: np.ndarray) -> np.ndarray:
    rotated_boxes[:, 0] = transform.width - rotated_boxes[:, 0]
    rotated_boxes[:, 4] = -rotated_boxes[:, 4]
    return rotated_boxes


def _keep_rotated_box(transform: Any, rotated_boxes: np.ndarray) -> np.ndarray:
    return rotated_boxes


HFlipTransform.register_type("rotated_box", _flip_rotated_box)
NoOpTransform.register_type("rotated_box", _keep_rotated_box)
