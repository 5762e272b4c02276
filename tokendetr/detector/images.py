"""Read the images of a detectron2 batch (list of dicts): check and normalize each.

Shapes: H, W height and width in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.detector.padding import PaddingRule, Size
from tokendetr.errors import InputError
from tokendetr.layers.precision import geometry_dtype


@dataclass(frozen=True)
class ImageBatch:
    """Normalized images of possibly unequal size.

    Attributes:
        images: one float tensor [3, H, W] per image, on the model's device.
        sizes: (height, width) of each image in pixels, as Python ints.
        padding: the input sizes that the backbone accepts.
    """

    images: list[Tensor]
    sizes: list[Size]
    padding: PaddingRule = field(default_factory=PaddingRule)

    def groups(self) -> dict[Size, list[int]]:
        """Return the positions of the images of each size, in order of first appearance."""
        positions: dict[Size, list[int]] = {}
        for position, size in enumerate(self.sizes):
            positions.setdefault(size, []).append(position)
        return positions


def describe(record: Mapping[str, Any], position: int) -> str:
    """Name a record of a batch for an error message, by its file or image id if it has one."""
    for key in ("file_name", "image_id"):
        if key in record:
            return f"image {position} of the batch ({key}={record[key]!r})"
    return f"image {position} of the batch"


def check_image(image: Any, where: str) -> None:
    """Raise InputError unless ``image`` is a tensor [3, H, W] with at least one pixel."""
    if not isinstance(image, Tensor):
        raise InputError(f"{where}: 'image' must be a tensor [3, H, W], got {type(image).__name__}")
    if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise InputError(f"{where}: 'image' must have shape [3, H, W], got {list(image.shape)}")


def read_images(
    records: Sequence[Mapping[str, Any]],
    *,
    pixel_mean_C11: Tensor,
    pixel_std_C11: Tensor,
    padding: PaddingRule | None = None,
) -> ImageBatch:
    """Check the images of a batch, move them to the mean's device and normalize them.

    Normalized images have the mean's dtype.

    Args:
        records: detectron2 inputs; each has ``image``, a tensor [3, H, W] of values 0..255.
        pixel_mean_C11: mean of each channel, [3, 1, 1].
        pixel_std_C11: standard deviation of each channel, [3, 1, 1].
        padding: the input sizes that the backbone accepts; None: any.

    Raises:
        InputError: the batch is empty or no list of records, or an image is missing, not [3, H, W]
            or larger than the backbone accepts.
    """
    padding = padding or PaddingRule()
    if not records:
        raise InputError("the batch is empty: a detector needs at least one image")
    images = []
    for position, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise InputError(
                f"image {position} of the batch is a {type(record).__name__}, not a record (a "
                "dict with 'image')"
            )
        check_image(record.get("image"), describe(record, position))
        image = record["image"].to(pixel_mean_C11.device, non_blocking=True)
        check_fits(image, padding, describe(record, position))
        images.append(normalize(image, pixel_mean_C11, pixel_std_C11))
    return ImageBatch(images, [(int(i.shape[-2]), int(i.shape[-1])) for i in images], padding)


def normalize(images: Tensor, pixel_mean_C11: Tensor, pixel_std_C11: Tensor) -> Tensor:
    """Return images [..., 3, H, W] without mean and deviation, in the dtype of the mean.

    Computed in at least float32.
    """
    wide = geometry_dtype(pixel_mean_C11.dtype)
    return ((images.to(wide) - pixel_mean_C11) / pixel_std_C11).to(pixel_mean_C11.dtype)


def check_fits(image: Tensor, padding: PaddingRule, where: str) -> None:
    """Raise InputError, naming the record, if a backbone cannot take an image of this size."""
    try:
        padding.canvas([(int(image.shape[-2]), int(image.shape[-1]))])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def pad_images(images: Sequence[Tensor], canvas: Size) -> Tensor:
    """Stack images into [B, 3, *canvas], with zeros at the right and the bottom.

    One image that fills the canvas is not copied.

    Args:
        images: normalized, [3, H, W] each, none larger than the canvas.
        canvas: height and width.
    """
    height, width = canvas
    padded = [
        F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))
        if image.shape[-2:] != canvas
        else image
        for image in images
    ]
    return torch.stack(padded) if len(padded) > 1 else padded[0][None]
