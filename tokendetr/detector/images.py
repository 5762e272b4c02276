"""From a detectron2 batch (list of dicts) to normalised images, checked one by one.

Dimensions: H, W height and width in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """Normalised images of possibly unequal size.

    Attributes:
        images: one float tensor [3, H, W] per image, on the model's device.
        sizes: (height, width) of each image in pixels, as Python ints.
    """

    images: list[Tensor]
    sizes: list[tuple[int, int]]

    @property
    def uniform(self) -> bool:
        """Whether all images have one size, so that stacking them needs no padding."""
        return len(set(self.sizes)) == 1

    def groups(self) -> dict[tuple[int, int], list[int]]:
        """Positions of the images of each size, in order of first appearance."""
        positions: dict[tuple[int, int], list[int]] = {}
        for position, size in enumerate(self.sizes):
            positions.setdefault(size, []).append(position)
        return positions


def describe(record: Mapping[str, Any], position: int) -> str:
    """Name a record of a batch for an error message: its file or image id where it has one."""
    for key in ("file_name", "image_id"):
        if key in record:
            return f"image {position} of the batch ({key}={record[key]!r})"
    return f"image {position} of the batch"


def check_image(image: Any, where: str) -> None:
    """Raise ValueError unless ``image`` is a tensor [3, H, W] with at least one pixel."""
    if not isinstance(image, Tensor):
        raise ValueError(f"{where}: 'image' must be a tensor [3, H, W], got {type(image).__name__}")
    if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"{where}: 'image' must have shape [3, H, W], got {list(image.shape)}")


def read_images(
    records: Sequence[Mapping[str, Any]], *, pixel_mean_C11: Tensor, pixel_std_C11: Tensor
) -> ImageBatch:
    """Check the images of a batch, move them to the device of ``pixel_mean_C11`` and normalise
    them.

    Args:
        records: detectron2 inputs; each has ``image``, a tensor [3, H, W] of values 0..255.
        pixel_mean_C11: mean of each channel, [3, 1, 1].
        pixel_std_C11: deviation of each channel, [3, 1, 1].

    Raises:
        ValueError: the batch is empty, or an image is missing or not [3, H, W].
    """
    if not records:
        raise ValueError("the batch is empty: a detector needs at least one image")
    images = []
    for position, record in enumerate(records):
        check_image(record.get("image"), describe(record, position))
        image = record["image"].to(pixel_mean_C11.device, non_blocking=True)
        images.append((image - pixel_mean_C11) / pixel_std_C11)
    return ImageBatch(images, [(int(i.shape[-2]), int(i.shape[-1])) for i in images])


def pad_images(batch: ImageBatch) -> Tensor:
    """Stack images into [B, 3, max height, max width], zeros at the right and the bottom."""
    height = max(h for h, _ in batch.sizes)
    width = max(w for _, w in batch.sizes)
    if batch.uniform:
        return torch.stack(batch.images)
    stacked = batch.images[0].new_zeros(len(batch.images), 3, height, width)
    for row, image in zip(stacked, batch.images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    return stacked
