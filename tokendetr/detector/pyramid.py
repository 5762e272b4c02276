"""Build the feature pyramid: levels with exact padding masks and positions.

Shapes: B image, C channel, L level, H, W height and width of one level, N all tokens of all
levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detrex.layers import PositionEmbeddingSine
from torch import Tensor, nn

from tokendetr.detector.images import ImageBatch, pad_images
from tokendetr.detector.interfaces import pyramid_levels
from tokendetr.encoder.forward_context import image_extents
from tokendetr.tokens import LevelLayout
from tokendetr.tokens.constants import kept_tensors

Size = tuple[int, int]


@dataclass(frozen=True)
class Pyramid:
    """Features of a batch, finest level first.

    Attributes:
        features: per level [B, C, H, W]; padding may hold anything.
        positions: per level [B, C, H, W] position embedding.
        layout: level shapes and real sizes (Python ints) and masks of real tokens.
    """

    features: list[Tensor]
    positions: list[Tensor]
    layout: LevelLayout


def covered_size(image_size: Size, canvas_size: Size, level_size: Size) -> Size:
    """Return the rows and columns of a level that an image in the canvas's top left covers.

    A cell is real if the pixel that nearest interpolation assigns to it lies in the image, as in
    upstream's interpolated masks. Computed in integers, without a mask or a device.
    """
    rows, columns = (
        min(level, -(-image * level // canvas))
        for image, canvas, level in zip(image_size, canvas_size, level_size, strict=True)
    )
    return rows, columns


LevelFeatures = tuple[list[Tensor], list[list[Size]]]


def padded_features(backbone: nn.Module, neck: nn.Module, batch: ImageBatch) -> LevelFeatures:
    """Compute features of all images padded to one canvas, as upstream trains.

    Returns:
        features: per level [B, C, H, W].
        covered: per level, the real (rows, columns) of each image.
    """
    canvas = batch.padding.canvas(batch.sizes)
    images = pad_images(batch.images, canvas)
    with image_extents(range(len(batch.sizes)), batch.sizes):
        features = pyramid_levels(backbone, neck, images)
    covered = [
        [covered_size(size, canvas, (f.shape[-2], f.shape[-1])) for size in batch.sizes]
        for f in features
    ]
    return features, covered


def separate_features(backbone: nn.Module, neck: nn.Module, batch: ImageBatch) -> LevelFeatures:
    """Compute features group by group of equally large images, then pad them level by level.

    Convolutions, spatial norms and attention windows see no padding except what the backbone needs,
    so an image's features do not depend on its batch. Returns the same as :func:`padded_features`.
    """
    groups = batch.groups()
    results, shown = {}, {}
    for size, rows in groups.items():
        canvas = batch.padding.canvas([size])
        images = pad_images([batch.images[i] for i in rows], canvas)
        if images.device.type == "cpu":
            # Else oneDNN would reorder the input and output of every convolution.
            images = images.contiguous(memory_format=torch.channels_last)
        with image_extents(rows, [size] * len(rows)):
            results[size] = pyramid_levels(backbone, neck, images)
        shown[size] = [
            covered_size(size, canvas, (f.shape[-2], f.shape[-1])) for f in results[size]
        ]
    if len(groups) == 1:
        ((features, sizes),) = zip(results.values(), shown.values(), strict=True)
        return features, [[size] * len(batch.sizes) for size in sizes]
    features, covered = [], []
    # Levels of different groups are padded with zeros; their padding is masked from here on.
    for index, levels in enumerate(zip(*results.values(), strict=True)):
        height = max(level.shape[-2] for level in levels)
        width = max(level.shape[-1] for level in levels)
        padded = levels[0].new_zeros(len(batch.sizes), levels[0].shape[1], height, width)
        level_covered: list[Size] = [(0, 0)] * len(batch.sizes)
        for (size, rows), level in zip(groups.items(), levels, strict=True):
            padded[rows, :, : level.shape[-2], : level.shape[-1]] = level
            for row in rows:
                level_covered[row] = shown[size][index]
        features.append(padded)
        covered.append(level_covered)
    return features, covered


def build_pyramid(
    backbone: nn.Module,
    neck: nn.Module,
    position_embedding: nn.Module,
    batch: ImageBatch,
    *,
    share_canvas: bool,
) -> Pyramid:
    """Run backbone and neck, and add masks and positions.

    Args:
        backbone: images [B, 3, H, W] -> dict of features.
        neck: dict of features -> levels [B, C, H, W], finest first.
        position_embedding: padding mask [B, H, W] (True = padding) -> [B, C, H, W].
        batch: the images.
        share_canvas: True pads images to one canvas before the backbone (training: one backbone
            call); False gives every image exactly the features it has alone (evaluation).
    """
    extract = padded_features if share_canvas else separate_features
    features, covered = extract(backbone, neck, batch)
    layout = LevelLayout.from_valid_sizes(
        [(feature.shape[-2], feature.shape[-1]) for feature in features],
        list(zip(*covered, strict=True)),
        device=features[0].device,
    )
    positions = [
        level_positions(
            position_embedding,
            layout.grid(layout.padding_BN, level),
            same=len(set(sizes)) == 1,
            filled=set(sizes) == {layout.level_shapes[level]},
        )
        for level, sizes in enumerate(covered)
    ]
    return Pyramid(features, positions, layout)


def level_positions(
    position_embedding: nn.Module, mask_BHW: Tensor, *, same: bool, filled: bool = False
) -> Tensor:
    """Return the position embedding [B, C, H, W] of one level.

    Args:
        position_embedding: see :func:`build_pyramid`.
        mask_BHW: bool, True = padding.
        same: all images have one mask; the embedding is computed once.
        filled: no image has padding.
    """
    if not same:
        return position_embedding(mask_BHW)
    if filled and type(position_embedding) is PositionEmbeddingSine:
        embedding_1CHW = _sine_positions(position_embedding, mask_BHW)
    else:
        embedding_1CHW = position_embedding(mask_BHW[:1])
    return embedding_1CHW.expand(mask_BHW.shape[0], -1, -1, -1)


def _sine_positions(embedding: PositionEmbeddingSine, mask_BHW: Tensor) -> Tensor:
    """Return the embedding of a level without padding.

    Half of its channels depend on the row alone and half on the column: these are computed once for
    each size.
    """
    names = ("num_pos_feats", "temperature", "scale", "eps", "offset", "normalize")
    settings = tuple(getattr(embedding, name) for name in names)
    _, height, width = mask_BHW.shape
    rows_HD = _axis_embedding(settings, height, 0, mask_BHW.device)
    columns_WD = _axis_embedding(settings, width, 1, mask_BHW.device)
    halves = (rows_HD[:, None].expand(-1, width, -1), columns_WD[None].expand(height, -1, -1))
    return torch.cat(halves, dim=2).permute(2, 0, 1)[None]


@kept_tensors
def _axis_embedding(
    settings: tuple[Any, ...], length: int, axis: int, device: torch.device
) -> Tensor:
    """Return the channels [length, C / 2] that depend on the row (axis 0) or the column (axis 1).

    Args:
        settings: arguments of :class:`detrex.layers.PositionEmbeddingSine`.
        length: number of rows or columns.
        axis: 0 or 1.
        device: of the result.
    """
    shape = (1, length, 1) if axis == 0 else (1, 1, length)
    mask_1HW = torch.zeros(shape, dtype=torch.bool, device=device)
    embedding_CHW = PositionEmbeddingSine(*settings)(mask_1HW)[0]
    return embedding_CHW.chunk(2)[axis].flatten(1).t().contiguous()


def flatten_levels(levels_BCHW: Sequence[Tensor]) -> Tensor:
    """Flatten levels [B, C, H, W] to tokens [B, N, C], finest level first, row by row."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels_BCHW], dim=1)
