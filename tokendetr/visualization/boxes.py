"""Draw boxes and labels: one color per class, ground truth dashed, labels without overlap.

Example::

    draw_boxes(image_HWC, [*found_boxes(instances, names), *annotated_boxes(...)]).save("drawn.png")

Shapes: N box, H, W image.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "DrawnBox",
    "class_color",
    "draw_boxes",
    "found_boxes",
    "legible_scale",
    "annotated_boxes",
]

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
_LEGIBLE_PX = 640
_FONT_PX = 13
_PAD = 2


@dataclass(frozen=True)
class DrawnBox:
    """A box to draw.

    Attributes:
        xyxy_px: left, top, right, bottom in pixels of the image.
        label: text beside it; may be empty.
        color: red, green, blue, each 0 to 255.
        is_truth: draw it dashed.
    """

    xyxy_px: Rectangle
    label: str
    color: Color
    is_truth: bool = False


def class_color(index: int) -> Color:
    """Return the color of a class.

    The hue advances by the golden ratio, so that neighboring classes differ; every 13 classes the
    lightness changes.

    Args:
        index: index of the class, from 0.
    """
    hue = (0.58 + index * 0.618034) % 1.0
    value, saturation = ((1.0, 0.85), (0.75, 1.0), (1.0, 0.5))[index // 13 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def found_boxes(instances: Instances, names: Sequence[str] | None = None) -> list[DrawnBox]:
    """Return detections as boxes to draw, labeled with name and score.

    Args:
        instances: with ``pred_boxes`` (xyxy, pixels), ``scores`` and ``pred_classes``.
        names: class names; None labels with indices.
    """
    return [
        DrawnBox(tuple(box), f"{_name(names, index)} {score:.0%}", class_color(index))
        for box, score, index in zip(
            instances.pred_boxes.tensor.tolist(),
            instances.scores.tolist(),
            instances.pred_classes.tolist(),
            strict=True,
        )
    ]


def annotated_boxes(
    annotations: Iterable[Mapping[str, Any]], names: Sequence[str] | None = None
) -> list[DrawnBox]:
    """Return the annotations of a record as dashed boxes, labeled with the class name.

    Args:
        annotations: each with ``bbox``, ``bbox_mode`` and ``category_id`` (the class index).
        names: class names; None labels with indices.
    """
    boxes = []
    for annotation in annotations:
        index = int(annotation["category_id"])
        mode = BoxMode(annotation["bbox_mode"])
        left, top, right, bottom = BoxMode.convert(
            list(map(float, annotation["bbox"])), mode, BoxMode.XYXY_ABS
        )
        xyxy_px = (left, top, right, bottom)
        boxes.append(DrawnBox(xyxy_px, _name(names, index), class_color(index), is_truth=True))
    return boxes


def _name(names: Sequence[str] | None, index: int) -> str:
    return str(index) if names is None else names[index]


def legible_scale(image_HWC: NDArray[Any]) -> float:
    """Return the factor, at least 1, by which to enlarge an image for legible labels."""
    return max(1.0, _LEGIBLE_PX / max(image_HWC.shape[:2]))


def draw_boxes(
    image_HWC: NDArray[np.uint8],
    boxes: Sequence[DrawnBox],
    *,
    scale: float = 1.0,
    line_px: int | None = None,
) -> Image.Image:
    """Draw boxes over an image, with labels that do not overlap.

    A label is placed at its box if there is room, otherwise as near as possible with a line to the
    box. If no room is left in the image, the label is omitted.

    Args:
        image_HWC: RGB uint8.
        boxes: the most important first; it is drawn on top, and its label is placed first.
        scale: the drawing's size divided by the image's.
        line_px: line width; None for one that depends on the drawing's size.

    Raises:
        ValueError: the scale is not a positive number.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number, got {scale}")
    height, width = (max(1, round(size * scale)) for size in image_HWC.shape[:2])
    drawing = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(drawing)
    line = line_px or max(2, round(max(width, height) / 400))
    font = ImageFont.load_default(max(_FONT_PX, round(max(width, height) / 60)))
    scaled = [_scaled(box.xyxy_px, scale) for box in boxes]
    for box, rectangle in reversed(list(zip(boxes, scaled, strict=True))):
        _outline(pen, rectangle, box, line)
    taken: list[Rectangle] = []
    for box, rectangle in zip(boxes, scaled, strict=True):
        if box.label:
            _label(pen, font, box, rectangle, taken, (width, height))
    return drawing


def _scaled(box: Rectangle, scale: float) -> Rectangle:
    left, top, right, bottom = (value * scale for value in box)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _outline(pen: ImageDraw.ImageDraw, box: Rectangle, drawn: DrawnBox, line: int) -> None:
    if not drawn.is_truth:
        pen.rectangle(box, outline=drawn.color, width=line)
        return
    left, top, right, bottom = box
    dash = 4 * line
    for start, end in (
        ((left, top), (right, top)),
        ((right, top), (right, bottom)),
        ((left, bottom), (right, bottom)),
        ((left, top), (left, bottom)),
    ):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1e-6)
        for begin in np.arange(0.0, length, 2 * dash):
            ends = [
                tuple(
                    a + (b - a) * min(at, length) / length for a, b in zip(start, end, strict=True)
                )
                for at in (begin, begin + dash)
            ]
            pen.line(ends, fill=drawn.color, width=line)


def _label(
    pen: ImageDraw.ImageDraw,
    font: Any,
    drawn: DrawnBox,
    box: Rectangle,
    taken: list[Rectangle],
    size: tuple[int, int],
) -> None:
    """Draw a label in a free place, and add the place to ``taken``."""
    left, top, right, bottom = pen.textbbox((0, 0), drawn.label, font=font)
    room = right - left + 2 * _PAD, bottom - top + 2 * _PAD
    for number, corner in enumerate(_places(box, room, size)):
        place = (*corner, corner[0] + room[0], corner[1] + room[1])
        if any(_overlap(place, other) for other in taken):
            continue
        taken.append(place)
        if number >= _PLACES_AT_THE_BOX:
            middle = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
            nearest = tuple(
                min(max(at, low), high)
                for at, low, high in zip(middle, box[:2], box[2:], strict=True)
            )
            pen.line([middle, nearest], fill=drawn.color, width=1)
        pen.rectangle(place, fill=drawn.color)
        ink = "black" if np.dot(drawn.color, (0.299, 0.587, 0.114)) > 140 else "white"
        pen.text((place[0] + _PAD - left, place[1] + _PAD - top), drawn.label, fill=ink, font=font)
        return


_PLACES_AT_THE_BOX = 6


def _places(
    box: Rectangle, room: tuple[float, float], size: tuple[int, int]
) -> Iterator[tuple[float, float]]:
    """Yield corners for a label: at the box, then with growing distance above and below it."""
    left, top, right, bottom = box
    wide, high = room
    near = [
        (left, top - high),
        (right - wide, top - high),
        (left, bottom),
        (right - wide, bottom),
        (left, top),
        (right - wide, bottom - high),
    ]
    steps = range(1, 2 + int(max(size) / high))
    far = [
        (left + aside * wide, start + sign * step * high)
        for step in steps
        for aside in (0.0, 0.6, -0.6)
        for start, sign in ((top - high, -1), (bottom, 1))
    ]
    for x, y in near + far:
        yield min(max(x, 0.0), max(size[0] - wide, 0.0)), min(max(y, 0.0), max(size[1] - high, 0.0))


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
