"""Unpadded image sizes of the batch that a backbone processes."""

from dataclasses import dataclass

__all__ = ["ImageExtents", "Size"]

Size = tuple[int, int]


@dataclass(frozen=True)
class ImageExtents:
    """The images of one backbone call.

    Attributes:
        rows: position of each image in the model's batch.
        sizes: (height, width) of each image in pixels; the rest of the canvas is padding.
    """

    rows: tuple[int, ...]
    sizes: tuple[Size, ...]
