"""Object tokens: those that contain a part of an object; labels of the gates and of evaluation.

Shapes: G objects of an image, H and W rows and columns of a grid of tokens.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from detectron2.structures import BitMasks, PolygonMasks
from detrex.layers import box_cxcywh_to_xyxy
from torch import Tensor
from torch.nn import functional as F

from tokendetr.encoder.aux_losses import ImageTargets
from tokendetr.tokens import grid_labels

LabelKind = Literal["boxes", "masks"]
LABEL_KINDS = ("boxes", "masks")
_SLACK_PX = 5e-3
"""Tolerance in pixels for the rounding of normalized coordinates: less overlap does not count."""


def box_cells(boxes_xyxy_px: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Return the cells that overlap a box, bool [H, W].

    Args:
        boxes_xyxy_px: [G, 4] in pixels of the network's input.
        grid: (height, width) of the tokens.
        stride: pixels per token.

    Source: SPT, arXiv 2410.23608, appendix B.3 (any overlap counts).
    """
    slack_4 = boxes_xyxy_px.new_tensor([_SLACK_PX, _SLACK_PX, -_SLACK_PX, -_SLACK_PX])
    return grid_labels(
        boxes_xyxy_px + slack_4, height=grid[0], width=grid[1], stride=stride, rule="overlap"
    )


def union_mask(masks: Any, image_size: tuple[int, int]) -> Tensor:
    """Return the pixels that any of detectron2's masks covers, bool [height, width].

    Raises:
        TypeError: another kind of masks.
    """
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *image_size)
    if not isinstance(masks, BitMasks):
        raise TypeError(f"masks must be BitMasks or PolygonMasks, got {type(masks).__name__}")
    return masks.tensor.bool().any(dim=0)


def mask_cells(union_HW: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Return the cells with at least one pixel of a mask, bool [H, W].

    Args:
        union_HW: bool, in pixels.
        grid: (height, width) of the tokens.
        stride: pixels per token.
    """
    bottom, right = (
        max(cells * stride - pixels, 0) for cells, pixels in zip(grid, union_HW.shape, strict=True)
    )
    padded = F.pad(union_HW.float(), (0, right, 0, bottom))
    pooled = F.max_pool2d(padded[None, None], stride)[0, 0]
    return pooled[: grid[0], : grid[1]] > 0


def object_cells(
    targets: Sequence[ImageTargets],
    grid: tuple[int, int],
    strides: Sequence[int],
    *,
    kind: LabelKind = "boxes",
) -> list[Tensor]:
    """Return for each stride the cells that contain a part of an object.

    Args:
        targets: the images' annotations.
        grid: (height, width) of the tokens at the first stride; every further stride halves it,
            rounding up.
        strides: pixels per token, each twice the one before.
        kind: extent of an object: its box or its mask.

    Returns:
        Per stride bool [B, H * W].

    Raises:
        ValueError: ``kind`` is "masks" and an image has none.
    """
    grids = [grid]
    for _ in strides[1:]:
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    rows: list[list[Tensor]] = [[] for _ in strides]
    for target in targets:
        if kind == "masks" and target.masks is None and len(target.labels):
            raise ValueError(
                "selection labels from masks need 'gt_masks' in the instances: let the data "
                "mapper read masks (mask_on=True), or use selection_labels='boxes'"
            )
        height, width = target.image_size
        device = target.boxes_cxcywh_norm.device
        scale = target.boxes_cxcywh_norm.new_tensor([width, height, width, height])
        boxes_xyxy_px = box_cxcywh_to_xyxy(target.boxes_cxcywh_norm) * scale
        from_masks = kind == "masks" and target.masks is not None and len(target.labels) > 0
        union_HW = union_mask(target.masks, target.image_size).to(device) if from_masks else None
        for row, cells, stride in zip(rows, grids, strides, strict=True):
            row.append(
                box_cells(boxes_xyxy_px, cells, stride).flatten()
                if union_HW is None
                else mask_cells(union_HW, cells, stride).flatten()
            )
    return [torch.stack(row) for row in rows]
