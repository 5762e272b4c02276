"""Values of annotations: which numbers and masks can be read, and how messages show the others.

The module needs only the standard library: it is beside the reader of annotations also in the
stand-in for detectron2, through a symbolic link.
"""

import itertools
import math
import reprlib
from typing import Any

__all__ = [
    "MAX_NUMBER",
    "AnnotationError",
    "are_numbers",
    "image_name",
    "is_finite",
    "is_number",
    "is_outline",
    "is_real",
    "is_run_lengths",
    "shown",
]

MAX_NUMBER = 1 << 53  # larger ids change when a backend stores them as float64


class AnnotationError(ValueError):
    """Annotations that cannot be used; the message names the file and the records."""


def is_real(value: Any) -> bool:
    """Return whether a value is a number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return is_real(value) and is_finite(value)


def is_finite(value: float) -> bool:
    """Return whether a number is neither infinite nor NaN."""
    return isinstance(value, int) or math.isfinite(value)


def are_numbers(values: Any, multiple: int, least: int) -> bool:
    """Return whether values are a list of finite numbers, of a multiple of a length."""
    is_list = isinstance(values, list) and len(values) % multiple == 0 and len(values) >= least
    return is_list and all(is_number(v) and abs(v) < MAX_NUMBER for v in values)


def is_outline(values: Any, image: dict[str, Any]) -> bool:
    """Return whether values are the corners of a polygon of reasonable position and length.

    Rasterizing one takes memory for every pixel along its outline, so the outline may be no longer
    than one around each of the image's pixels.
    """
    if not are_numbers(values, 2, 6):
        return False
    width, height = image.get("width"), image.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        return True  # the image is a fault already
    length = 0.0
    for axis, side in ((0, width), (1, height)):
        ends = values[axis::2]
        if min(ends) < -side or max(ends) > 2 * side:
            return False
        length += sum(abs(b - a) for a, b in itertools.pairwise([*ends, ends[0]]))
    return length <= 4 * (width + 2) * (height + 2)


def is_run_lengths(mask: dict[str, Any], image: dict[str, Any]) -> bool:
    """Return whether run lengths, plain or compressed, cover exactly the image."""
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or size != [image.get("height"), image.get("width")]:
        return False
    if isinstance(counts, str):
        counts = _run_lengths(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        return False
    return sum(counts) == size[0] * size[1]


def _run_lengths(text: str) -> list[int] | None:
    """Decompress COCO's run lengths; None if they are malformed.

    A character carries 5 bits, the lowest first, and a sixth that says whether another one follows;
    the highest bit of the last one is the sign. From the fourth length on, the difference to the
    length two places before is stored.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            if shift > 60:
                return None
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return counts if shift == 0 else None


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxlong, _REPR.maxother = 2, 60, 40, 60


def shown(value: Any) -> str:
    """Return a short representation of a value of any size or depth, for messages."""
    return _REPR.repr(value)


def image_name(image: dict[str, Any]) -> str:
    """Return an image's id and file name, for messages."""
    name = image.get("file_name", "no file name")
    return f"image id {image['id']} ({name if isinstance(name, str) else shown(name)})"
