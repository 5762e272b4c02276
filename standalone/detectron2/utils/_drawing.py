"""The canvas and the mask type of the visualizer."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import matplotlib.figure as mplfigure
import numpy as np
import pycocotools.mask as mask_util
from contourpy import contour_generator
from matplotlib.backends.backend_agg import FigureCanvasAgg


class VisImage:
    """Canvas over an image.

    Args:
        img: [H, W, 3], RGB in [0, 255].
        scale: factor from image pixels to pixels of the result.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.img = img
        self.scale = scale
        self.width, self.height = img.shape[1], img.shape[0]
        self._setup_figure(img)

    def _setup_figure(self, img: np.ndarray) -> None:
        self.fig = mplfigure.Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        # without the small addition, rounding loses a pixel of some sizes
        self.fig.set_size_inches(
            (self.width * self.scale + 1e-2) / self.dpi,
            (self.height * self.scale + 1e-2) / self.dpi,
        )
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Replace the image below the drawing."""
        self.ax.imshow(
            img.astype("uint8"), extent=(0, self.width, self.height, 0), interpolation="nearest"
        )

    def save(self, filepath: str) -> None:
        """Write the image to a file; the suffix chooses the format."""
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """Return the image as uint8 RGB [H * scale, W * scale, 3]."""
        stream, (width, height) = self.canvas.print_to_buffer()
        rgba = np.frombuffer(stream, dtype="uint8").reshape(height, width, 4)
        return rgba[:, :, :3].copy()


def _signed_area(points_P2: np.ndarray) -> float:
    x, y = points_P2[:, 0], points_P2[:, 1]
    return float(0.5 * (np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


class GenericMask:
    """A mask as polygons and as a bitmap, converted on demand.

    Args:
        mask_or_polygons: a bool array [H, W], an RLE dict, or a list of flat polygons x0, y0, ...
        height: of the image.
        width: of the image.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int) -> None:
        self.height = height
        self.width = width
        self._given_mask: np.ndarray | None = None
        self._given_polygons: list[np.ndarray] | None = None
        if isinstance(mask_or_polygons, dict):
            rle = mask_or_polygons
            if isinstance(rle["counts"], list):
                rle = mask_util.frPyObjects(rle, *rle["size"])
            mask_or_polygons = mask_util.decode(rle)
        if isinstance(mask_or_polygons, (list, tuple)):
            self._given_polygons = [
                np.asarray(p, dtype=float).reshape(-1) for p in mask_or_polygons
            ]
        else:
            mask = np.asarray(mask_or_polygons)
            if mask.shape != (height, width):
                raise ValueError(f"mask shape: {mask.shape}, target dims: {height}, {width}")
            self._given_mask = mask.astype(bool)

    @cached_property
    def mask(self) -> np.ndarray:
        """Bool [H, W]."""
        if self._given_mask is not None:
            return self._given_mask
        polygons = [p for p in self._given_polygons or [] if len(p) >= 6]
        if not polygons:
            return np.zeros((self.height, self.width), dtype=bool)
        rles = mask_util.frPyObjects(polygons, self.height, self.width)
        return mask_util.decode(mask_util.merge(rles)).astype(bool)

    @cached_property
    def _outlines(self) -> list[np.ndarray]:
        """Return closed outlines [P, 2] of a bitmap; holes run in the opposite direction."""
        padded = np.pad(self.mask.astype(float), 1)
        lines = contour_generator(z=padded, name="serial").lines(0.5)
        # the center of pixel (0, 0) is at 1 in the padded grid and at 0.5 in the image
        return [np.asarray(line) - 0.5 for line in lines if len(line) >= 4]

    @cached_property
    def polygons(self) -> list[np.ndarray]:
        """Flat outer polygons x0, y0, ... in pixels."""
        if self._given_polygons is not None:
            return self._given_polygons
        return [line.reshape(-1) for line in self._outlines if _signed_area(line) > 0]

    @property
    def has_holes(self) -> bool:
        """True if the bitmap has a hole; polygons never do."""
        if self._given_polygons is not None:
            return False
        return any(_signed_area(line) < 0 for line in self._outlines)

    def area(self) -> int:
        """Return the number of pixels."""
        return int(self.mask.sum())

    def bbox(self) -> Sequence[float]:
        """Return the tight box (x0, y0, x1, y1)."""
        points = np.concatenate([np.zeros(0), *self.polygons]).reshape(-1, 2)
        if len(points) == 0:
            return (0.0, 0.0, 0.0, 0.0)
        return (*points.min(axis=0), *points.max(axis=0))
