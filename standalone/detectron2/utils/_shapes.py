"""Draw text, boxes, lines, circles, polygons and masks on an image."""

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import matplotlib.colors as mplc
import matplotlib.patches as patches
import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes
from matplotlib.lines import Line2D

from ._drawing import GenericMask, VisImage
from .colormap import random_color

SMALL_OBJECT_AREA = 1000


def as_tensor(value: Any) -> Any:
    """Return the numbers of boxes, masks and tensors on the CPU; anything else unchanged."""
    if isinstance(value, (Boxes, BitMasks)):
        value = value.tensor
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    return value


class ShapeDrawer:
    """Draw shapes on an image; every method returns the canvas, so that calls can be chained.

    Args:
        img_rgb: [H, W, 3], RGB in [0, 255].
        scale: size of the result relative to the image.
        font_size_scale: factor on the size of text.
    """

    def __init__(self, img_rgb: Any, scale: float = 1.0, font_size_scale: float = 1.0) -> None:
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.output = VisImage(self.img, scale=scale)
        # smaller text is unreadable
        size = math.sqrt(self.output.height * self.output.width)
        self._default_font_size = max(size // 90, 10 // scale) * font_size_scale

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write text whose top is at ``position`` (x, y), in a light color on a dark ground."""
        rgb = np.maximum(list(mplc.to_rgb(color)), 0.2)
        rgb[np.argmax(rgb)] = max(0.8, float(np.max(rgb)))
        self.output.ax.text(
            position[0],
            position[1],
            text,
            size=(font_size or self._default_font_size) * self.output.scale,
            family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"},
            verticalalignment="top",
            horizontalalignment=horizontal_alignment,
            color=tuple(rgb),
            zorder=10,
            rotation=rotation,
        )
        return self.output

    def draw_box(
        self, box_coord: Any, alpha: float = 0.5, edge_color: Any = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of a box (x0, y0, x1, y1)."""
        x0, y0, x1, y1 = (float(v) for v in box_coord)
        self.output.ax.add_patch(
            patches.Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=edge_color,
                linewidth=max(self._default_font_size / 4, 1) * self.output.scale,
                alpha=alpha,
                linestyle=line_style,
            )
        )
        return self.output

    def draw_circle(self, circle_coord: Any, color: Any, radius: float = 3) -> VisImage:
        """Draw a filled circle around (x, y)."""
        x, y = (float(v) for v in circle_coord)
        self.output.ax.add_patch(patches.Circle((x, y), radius=radius, fill=True, color=color))
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Any,
        linestyle: Any = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through points."""
        width = self._default_font_size / 3 if linewidth is None else linewidth
        self.output.ax.add_line(
            Line2D(
                list(x_data),
                list(y_data),
                linewidth=max(width, 1) * self.output.scale,
                color=color,
                linestyle=linestyle,
            )
        )
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: Any,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: int = 10,
    ) -> VisImage:
        """Draw a mask [H, W].

        Args:
            binary_mask: bool or 0/1.
            color: of the mask; random by default.
            edge_color: of the outline; by default like the mask.
            text: written on the mask.
            alpha: opacity.
            area_threshold: parts with fewer pixels are not drawn.
        """
        if color is None:
            color = tuple(random_color(rgb=True, maximum=1))
        mask = GenericMask(np.asarray(as_tensor(binary_mask)), *self.img.shape[:2])
        if mask.area() < area_threshold or mask.area() == 0:
            return self.output
        self._draw_mask(mask, mplc.to_rgb(color), alpha, edge_color)
        if text:
            self._draw_text_in_mask(mask, text, self._change_color_brightness(color, 0.7))
        return self.output

    def draw_soft_mask(
        self, soft_mask: Any, color: Any = None, *, text: str | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Draw a mask [H, W] of opacities in [0, 1]."""
        if color is None:
            color = tuple(random_color(rgb=True, maximum=1))
        opacity = np.asarray(as_tensor(soft_mask), dtype=float)
        self._draw_rgba(mplc.to_rgb(color), opacity * alpha)
        if text:
            mask = GenericMask(opacity > 0.5, *self.img.shape[:2])
            if mask.area():
                self._draw_text_in_mask(mask, text, self._change_color_brightness(color, 0.7))
        return self.output

    def draw_polygon(
        self, segment: Any, color: Any, edge_color: Any = None, alpha: float = 0.5
    ) -> VisImage:
        """Draw a filled polygon of points [P, 2]."""
        if edge_color is None:
            edge_color = color
            if alpha > 0.8:
                edge_color = self._change_color_brightness(color, -0.7)
        self.output.ax.add_patch(
            patches.Polygon(
                np.asarray(segment, dtype=float).reshape(-1, 2),
                fill=True,
                facecolor=(*mplc.to_rgb(color), alpha),
                edgecolor=(*mplc.to_rgb(edge_color), 1.0),
                linewidth=max(self._default_font_size // 15 * self.output.scale, 1),
            )
        )
        return self.output

    def get_output(self) -> VisImage:
        """Return the canvas with everything drawn so far."""
        return self.output

    def _draw_mask(
        self, mask: GenericMask, color: Any, alpha: float, edge_color: Any = None
    ) -> None:
        """Fill the polygons of a mask, or its pixels when it has holes."""
        if mask.has_holes:
            self._draw_rgba(mplc.to_rgb(color), mask.mask * alpha)
            return
        for polygon in mask.polygons:
            if len(polygon) >= 6:
                self.draw_polygon(polygon, color, edge_color=edge_color, alpha=alpha)

    def _draw_rgba(self, color: Sequence[float], opacity_HW: np.ndarray) -> None:
        height, width = opacity_HW.shape
        rgba = np.zeros((height, width, 4), dtype=np.float32)
        rgba[..., :3] = color
        rgba[..., 3] = opacity_HW
        self.output.ax.imshow(rgba, extent=(0, self.output.width, self.output.height, 0))

    def _draw_text_in_mask(self, mask: GenericMask, text: str, color: Any) -> None:
        rows, columns = np.nonzero(mask.mask)
        self.draw_text(text, (float(np.median(columns)), float(np.median(rows))), color=color)

    def _font_size(self, relative_height: float) -> float:
        """Return a font size that grows with the object."""
        factor = float(np.clip((relative_height - 0.02) / 0.08 + 1, 1.2, 2))
        return factor * 0.5 * self._default_font_size

    @staticmethod
    def _change_color_brightness(color: Any, brightness_factor: float) -> tuple[float, ...]:
        """Make a color lighter (factor in (0, 1]) or darker (factor in [-1, 0))."""
        assert -1.0 <= brightness_factor <= 1.0
        hue, lightness, saturation = colorsys.rgb_to_hls(*mplc.to_rgb(color))
        lightness = float(np.clip(lightness * (1 + brightness_factor), 0.0, 1.0))
        return tuple(np.clip(colorsys.hls_to_rgb(hue, lightness, saturation), 0.0, 1.0))
