"""Compose one image of the shapes data set, and annotate the visible parts of its objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from tokendetr.data.shapes.random import IntegerRandom
from tokendetr.data.shapes.raster import (
    UNITS,
    Color,
    Figure,
    Patch,
    overlap,
    paint,
    rasterize,
    smooth_noise,
)

SHAPES = ("disc", "square", "triangle", "cross")
TEXTURES = ("plain", "striped", "checked")
CATEGORIES = tuple(f"{texture}_{shape}" for shape in SHAPES for texture in TEXTURES)
LONG_SIDE = 256
_SHORT_SIDES = (160, 256)
# (percent of objects, smallest and largest side in pixels): very small, small, medium, large.
_SIZE_CLASSES = ((13, 11, 21), (20, 22, 33), (38, 34, 95), (29, 105, 180))
_CROWD = 255  # value in the map of visible objects
_KEEP_VISIBLE = 55  # percent of an object's pixels that later objects must leave visible
_TRIES = 12


@dataclass
class Scene:
    """An image with its annotations.

    Attributes:
        image_HWC: uint8 RGB.
        annotations: COCO records without ``id`` and ``image_id``: ``category_id`` (from 1),
            ``bbox`` (x, y, width, height in pixels of the visible part), ``area``, ``iscrowd``,
            ``segmentation`` (compressed RLE).
    """

    image_HWC: NDArray[np.uint8]
    annotations: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Placed:
    category: int
    pixels: int


class _Composer:
    """Draw figures on a background, and keep track of which pixel shows which object."""

    def __init__(self, random: IntegerRandom, height: int, width: int) -> None:
        self.random = random
        self.height, self.width = height, width
        self.base: Color = _random_color(random, 50, 205)
        self.canvas_HWC = _background(random, height, width, self.base)
        self.owner_HW = np.zeros((height, width), dtype=np.uint8)  # 0 = background, k = k-th object
        self.placed: list[_Placed] = []

    def add_objects(self, count: int) -> None:
        """Place up to ``count`` objects, the largest at the back; skip those without room."""
        sizes = sorted((_random_size(self.random) for _ in range(count)), reverse=True)
        for size in sizes:
            category = self.random.between(0, len(CATEGORIES) - 1)
            patch = rasterize(_random_figure(self.random, category, size, self.base))
            if self._place(patch, len(self.placed) + 1, self._anywhere(patch)):
                self.placed.append(_Placed(category, int(patch.mask.sum())))

    def add_crowd(self) -> int:
        """Place a cluster of small objects of one category; return that category."""
        category = self.random.between(0, len(CATEGORIES) - 1)
        cell = self.random.between(13, 17)
        columns, rows = self.random.between(4, 6), self.random.between(3, 4)
        left = self.random.between(0, self.width - columns * cell - 4)
        top = self.random.between(0, self.height - rows * cell - 4)
        for index in range(columns * rows):
            size = self.random.between(cell - 4, cell)
            patch = rasterize(_random_figure(self.random, category, size, self.base))
            y = top + index // columns * cell + self.random.between(0, 3)
            x = left + index % columns * cell + self.random.between(0, 3)
            self._draw(patch, _CROWD, y, x)
        return category

    def _anywhere(self, patch: Patch) -> list[tuple[int, int]]:
        """Return candidate positions with at most an eighth of the patch's sides out of view."""
        height, width = patch.first.shape
        return [
            (
                self.random.between(-height // 8, max(0, self.height - height * 7 // 8)),
                self.random.between(-width // 8, max(0, self.width - width * 7 // 8)),
            )
            for _ in range(_TRIES)
        ]

    def _place(self, patch: Patch, value: int, candidates: list[tuple[int, int]]) -> bool:
        for top, left in candidates:
            if self._leaves_others_visible(patch, top, left):
                self._draw(patch, value, top, left)
                return True
        return False

    def _leaves_others_visible(self, patch: Patch, top: int, left: int) -> bool:
        on_canvas, on_patch = overlap(self.owner_HW.shape, patch.first.shape, top, left)
        covered = self.owner_HW[on_canvas][patch.mask[on_patch]]
        if not covered.any():
            return True
        lost = np.bincount(covered, minlength=256)
        visible = np.bincount(self.owner_HW.ravel(), minlength=256) - lost
        return not lost[_CROWD] and all(
            not lost[value] or visible[value] * 100 >= placed.pixels * _KEEP_VISIBLE
            for value, placed in enumerate(self.placed, start=1)
        )

    def _draw(self, patch: Patch, value: int, top: int, left: int) -> None:
        paint(self.canvas_HWC, patch, top, left)
        on_canvas, on_patch = overlap(self.owner_HW.shape, patch.first.shape, top, left)
        self.owner_HW[on_canvas][patch.mask[on_patch]] = value

    def annotation(self, value: int, category: int) -> dict[str, Any]:
        """Return the COCO record of the pixels that show object ``value``."""
        visible_HW = self.owner_HW == value
        rows, columns = np.flatnonzero(visible_HW.any(1)), np.flatnonzero(visible_HW.any(0))
        left, top = int(columns[0]), int(rows[0])
        encoded = coco_mask.encode(np.asfortranarray(visible_HW.astype(np.uint8)))
        return {
            "category_id": category + 1,
            "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            "area": int(visible_HW.sum()),
            "iscrowd": int(value == _CROWD),
            "segmentation": {
                "size": [self.height, self.width],
                "counts": encoded["counts"].decode("ascii"),
            },
        }


def make_scene(random: IntegerRandom) -> Scene:
    """Compose one image: 5 % have a crowd; 3 % have no other objects, the rest 1 to 8."""
    short = random.between(*_SHORT_SIDES)
    height, width = (short, LONG_SIDE) if random.chance(65) else (LONG_SIDE, short)
    composer = _Composer(random, height, width)
    crowd = composer.add_crowd() if random.chance(5) else None
    if not random.chance(3):
        composer.add_objects(1 + sum(random.between(0, 2) for _ in range(3)) + random.between(0, 1))
    annotations = [
        composer.annotation(value, placed.category)
        for value, placed in enumerate(composer.placed, start=1)
    ]
    if crowd is not None:
        annotations.append(composer.annotation(_CROWD, crowd))
    grain = random.field((height, width, 1), -5, 5)
    image = np.clip(composer.canvas_HWC + grain, 0, 255).astype(np.uint8)
    return Scene(image, annotations)


def _background(random: IntegerRandom, height: int, width: int, base: Color) -> NDArray[np.int32]:
    """Return smooth color drifts, two octaves of gray noise, and faint bars of every texture."""
    canvas = np.empty((height, width, 3), dtype=np.int32)
    gray = smooth_noise(random, height, width, 24, 26) + smooth_noise(random, height, width, 6, 14)
    for channel in range(3):
        canvas[..., channel] = base[channel] + gray + smooth_noise(random, height, width, 96, 22)
    for _ in range(random.between(4, 9)):
        bar = Figure(
            shape="square",
            texture=random.choice(TEXTURES),
            half_width=random.between(40, 110) * UNITS,
            half_height=random.between(2, 7) * UNITS,
            angle=random.between(0, 255),
            period=random.between(6, 20) * UNITS,
            colors=(_random_color(random, 30, 225), _random_color(random, 30, 225)),
        )
        top, left = random.between(-60, height - 1), random.between(-60, width - 1)
        paint(canvas, rasterize(bar), top, left, percent=random.between(20, 45))
    return canvas


def _random_color(random: IntegerRandom, low: int, high: int) -> Color:
    return (random.between(low, high), random.between(low, high), random.between(low, high))


def _distance(one: Color, other: Color) -> int:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def _random_size(random: IntegerRandom) -> int:
    """Return a random side length in pixels."""
    draw = random.between(0, 99)
    for percent, low, high in _SIZE_CLASSES:
        if draw < percent:
            return random.between(low, high)
        draw -= percent
    raise AssertionError("the size classes must add up to 100 percent")


def _random_figure(random: IntegerRandom, category: int, size: int, base: Color) -> Figure:
    """Return a figure of the category whose colors contrast with the background and each other."""
    stretch = random.between(80, 125)
    first = _random_color(random, 15, 240)
    while _distance(first, base) < 130:
        first = _random_color(random, 15, 240)
    second = _random_color(random, 15, 240)
    while abs(sum(first) - sum(second)) < 210:
        second = _random_color(random, 15, 240)
    texture = TEXTURES[category % len(TEXTURES)]
    cycles = random.between(25, 45)  # tenths of a cycle along the width
    return Figure(
        shape=SHAPES[category // len(TEXTURES)],
        texture=texture,
        half_width=max(UNITS, size * UNITS * stretch // 200),
        half_height=max(UNITS, size * UNITS * 50 // stretch),
        angle=random.between(-20, 20) % 256,
        period=max(5 * UNITS, size * UNITS * 10 // cycles),
        colors=(first, second),
    )
