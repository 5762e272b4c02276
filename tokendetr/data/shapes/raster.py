"""Rasterize textured shapes and backgrounds in integer arithmetic, so that machines agree exactly.

Lengths are in eighths of a pixel ("units"), angles in 256ths of a turn; every pixel is sampled at
2 x 2 points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokendetr.data.shapes.random import IntegerRandom

UNITS = 8
SAMPLES = 4
_EDGE = 1024  # half extent of a shape in the coordinates in which its outline is tested
_TRIG_BITS = 14
# No value is near a rounding boundary, so every math library gives the same integers.
_SINE = [round(math.sin(2 * math.pi * turn / 256) * (1 << _TRIG_BITS)) for turn in range(256)]

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Figure:
    """An outline filled with a two-color texture, without a position.

    Attributes:
        shape: "disc", "square", "triangle" or "cross".
        texture: "plain", "striped" or "checked".
        half_width, half_height: half extents before rotation, units.
        angle: rotation, 256ths of a turn.
        period: length of one light-dark cycle of the texture, units.
        colors: the texture's two colors, RGB in [0, 255].
    """

    shape: str
    texture: str
    half_width: int
    half_height: int
    angle: int
    period: int
    colors: tuple[Color, Color]


@dataclass(frozen=True)
class Patch:
    """A rasterized figure: the number of a pixel's 4 samples that show each of its two colors.

    Attributes:
        first, second: int32 ``[h, w]``, 0 to 4.
        colors: the two colors.
    """

    first: NDArray[np.int32]
    second: NDArray[np.int32]
    colors: tuple[Color, Color]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels of which at least half is covered."""
        return (self.first + self.second) * 2 >= SAMPLES


def _inside(shape: str, u: NDArray[np.int32], v: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return which samples are inside an outline, which spans [-1024, 1024] in ``u`` and ``v``."""
    if shape == "disc":
        return u * u + v * v <= _EDGE * _EDGE
    wide, high = np.abs(u), np.abs(v)
    if shape == "square":
        return (wide <= _EDGE) & (high <= _EDGE)
    if shape == "triangle":
        return (high <= _EDGE) & (2 * wide <= v + _EDGE)
    if shape == "cross":
        arm = _EDGE * 3 // 8
        return (np.minimum(wide, high) <= arm) & (np.maximum(wide, high) <= _EDGE)
    raise ValueError(f"unknown shape {shape!r}: expected disc, square, triangle or cross")


def _second_color(
    texture: str, u: NDArray[np.int32], v: NDArray[np.int32], period: int
) -> NDArray[np.bool_]:
    """Return which samples show the second color; ``u`` and ``v`` in units from the center."""
    half = max(1, period // 2)
    if texture == "plain":
        return np.zeros(u.shape, dtype=bool)
    if texture == "striped":
        return ((u + half // 2) // half) % 2 == 1
    if texture == "checked":
        return ((u + half // 2) // half + (v + half // 2) // half) % 2 == 1
    raise ValueError(f"unknown texture {texture!r}: expected plain, striped or checked")


def rasterize(figure: Figure) -> Patch:
    """Rasterize a figure into the smallest patch that is guaranteed to contain it."""
    cosine, sine = _SINE[(figure.angle + 64) % 256], _SINE[figure.angle % 256]
    reach_x = (figure.half_width * abs(cosine) + figure.half_height * abs(sine)) >> _TRIG_BITS
    reach_y = (figure.half_width * abs(sine) + figure.half_height * abs(cosine)) >> _TRIG_BITS
    width, height = 2 * (reach_x // UNITS + 1), 2 * (reach_y // UNITS + 1)
    # Samples are at a quarter and three quarters of every pixel, measured from the patch's center.
    x = np.arange(2 * width, dtype=np.int32) * (UNITS // 2) + UNITS // 4 - width * UNITS // 2
    y = np.arange(2 * height, dtype=np.int32) * (UNITS // 2) + UNITS // 4 - height * UNITS // 2
    u = (x[None, :] * cosine + y[:, None] * sine) >> _TRIG_BITS
    v = (y[:, None] * cosine - x[None, :] * sine) >> _TRIG_BITS
    limit = 2 * _EDGE  # keeps squares within int32; everything beyond the edge is outside anyway
    inside = _inside(
        figure.shape,
        np.clip(u * _EDGE // figure.half_width, -limit, limit),
        np.clip(v * _EDGE // figure.half_height, -limit, limit),
    )
    second = _second_color(figure.texture, u, v, figure.period) & inside

    def count(samples: NDArray[np.bool_]) -> NDArray[np.int32]:
        return samples.reshape(height, 2, width, 2).sum(axis=(1, 3), dtype=np.int32)

    return Patch(count(inside & ~second), count(second), figure.colors)


def overlap(
    canvas_hw: tuple[int, int], patch_hw: tuple[int, int], top: int, left: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the slices of the canvas and of a patch at (top, left) that overlap.

    They are empty if the patch is outside of the canvas.
    """
    canvas, patch = [], []
    for size, length, start in zip(canvas_hw, patch_hw, (top, left), strict=True):
        low, high = max(0, start), max(0, min(size, start + length), start)
        high = max(low, min(high, size))
        canvas.append(slice(low, high))
        patch.append(slice(low - start, high - start))
    return (canvas[0], canvas[1]), (patch[0], patch[1])


def paint(
    canvas_HWC: NDArray[np.int32], patch: Patch, top: int, left: int, percent: int = 100
) -> None:
    """Blend a patch into the int32 canvas in place; ``percent`` is its opacity."""
    on_canvas, on_patch = overlap(canvas_HWC.shape[:2], patch.first.shape, top, left)
    first = patch.first[on_patch][..., None] * percent
    second = patch.second[on_patch][..., None] * percent
    full = SAMPLES * 100
    color_a, color_b = (np.array(color, dtype=np.int32) for color in patch.colors)
    region = canvas_HWC[on_canvas]
    region[...] = (
        region * (full - first - second) + color_a * first + color_b * second + full // 2
    ) // full


def smooth_noise(
    random: IntegerRandom, height: int, width: int, cell: int, amplitude: int
) -> NDArray[np.int32]:
    """Return random values on a grid of ``cell`` pixels, interpolated, int32 [height, width]."""
    grid = random.field((height // cell + 2, width // cell + 2), -amplitude, amplitude)
    y, x = np.arange(height), np.arange(width)
    fraction_y, fraction_x = (y % cell).astype(np.int32)[:, None], (x % cell).astype(np.int32)
    rows = grid[y // cell] * (cell - fraction_y) + grid[y // cell + 1] * fraction_y
    both = rows[:, x // cell] * (cell - fraction_x) + rows[:, x // cell + 1] * fraction_x
    result: NDArray[np.int32] = (both // (cell * cell)).astype(np.int32)
    return result
