"""Rasterize boxes on token grids: the tokens that belong to annotated objects.

Shapes: B image, N all tokens, L level, G box, H and W a grid's height and width.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tokendetr.errors import check_choice
from tokendetr.tokens.layout import LevelLayout

LabelRule = Literal["center", "center_half_size", "overlap"]
LABEL_RULES = ("center", "center_half_size", "overlap")
SizeRange = tuple[float, float]
EVERY_SIZE: SizeRange = (-math.inf, math.inf)


def overlapping_size_ranges(ends_px: Sequence[float]) -> tuple[SizeRange, ...]:
    """Return one size range per level, each starting in the middle of the one before.

    Args:
        ends_px: ends of the ranges of all levels but the coarsest, increasing.

    Raises:
        ValueError: the ends are not positive and increasing.

    Source: Focus-DETR, arXiv 2307.12612, equation 1.
    """
    if any(end <= 0 for end in ends_px) or list(ends_px) != sorted(set(ends_px)):
        raise ValueError(f"ends of size ranges must be positive and increase, got {ends_px}")
    ranges, begin = [], 0.0
    for end in [*map(float, ends_px), math.inf]:
        ranges.append((begin, end))
        begin = (begin + end) / 2
    return tuple(ranges)


def grid_labels(
    boxes_xyxy_px: Tensor,
    *,
    height: int,
    width: int,
    stride: int,
    rule: LabelRule,
    size_range: SizeRange = EVERY_SIZE,
) -> Tensor:
    """Return a mask of the tokens of one grid that belong to any of an image's boxes.

    Args:
        boxes_xyxy_px: float [G, 4] in pixels of the network's input.
        height: rows of the grid.
        width: its columns.
        stride: pixels per token; token (i, j) covers ``stride`` x ``stride`` pixels from
            (i, j) * stride.
        rule: "center": the token's central pixel, ``stride // 2`` from its upper left corner, lies
            strictly inside the box; "center_half_size": likewise, with another ``size_range``;
            "overlap": token and box overlap in an area above 0.
        size_range: range (lower, upper], in pixels, of the distance from the central pixel to the
            box's farthest side ("center"), or of half the box's larger side ("center_half_size").

    Returns:
        Bool [H, W].

    Raises:
        ValueError: unknown rule, stride below 1, or boxes of another shape.

    Source: Focus-DETR, arXiv 2307.12612, section 3.2, equation 1. The paper's text takes half the
    larger side ("center_half_size"), its published code the farthest side ("center").
    """
    check_choice("rule", rule, LABEL_RULES)
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if boxes_xyxy_px.dim() != 2 or boxes_xyxy_px.shape[1] != 4:
        raise ValueError(f"boxes must have shape [G, 4], got {list(boxes_xyxy_px.shape)}")
    left_G, top_G, right_G, bottom_G = boxes_xyxy_px.unbind(dim=1)
    column_W = torch.arange(width, device=boxes_xyxy_px.device) * stride
    row_H = torch.arange(height, device=boxes_xyxy_px.device) * stride
    if rule == "overlap":
        has_area_G = (right_G > left_G) & (bottom_G > top_G)
        in_GW = (column_W < right_G[:, None]) & (column_W + stride > left_G[:, None])
        in_GH = (row_H < bottom_G[:, None]) & (row_H + stride > top_G[:, None])
        in_GH = in_GH & has_area_G[:, None]
        return (in_GH[:, :, None] & in_GW[:, None, :]).any(dim=0)
    x_W, y_H = column_W + stride // 2, row_H + stride // 2
    to_side_GW = torch.stack([x_W - left_G[:, None], right_G[:, None] - x_W])
    to_side_GH = torch.stack([y_H - top_G[:, None], bottom_G[:, None] - y_H])
    near_GHW = torch.minimum(to_side_GH.amin(0)[:, :, None], to_side_GW.amin(0)[:, None, :])
    if rule == "center_half_size":
        half_G = torch.maximum(right_G - left_G, bottom_G - top_G) / 2
        far_GHW = half_G[:, None, None].expand_as(near_GHW)
    else:
        far_GHW = torch.maximum(to_side_GH.amax(0)[:, :, None], to_side_GW.amax(0)[:, None, :])
    low, high = size_range
    return ((near_GHW > 0) & (far_GHW > low) & (far_GHW <= high)).any(dim=0)


def box_labels(
    boxes_xyxy_px: Sequence[Tensor],
    layout: LevelLayout,
    *,
    strides: Sequence[int],
    rule: LabelRule,
    size_ranges: Sequence[SizeRange] | None = None,
) -> Tensor:
    """Return a mask of the tokens of a batch of pyramids that belong to a box; never padding.

    Args:
        boxes_xyxy_px: per image, float [G, 4] in pixels.
        layout: the batch.
        strides: pixels per token of each level, finest first.
        rule: see :func:`grid_labels`.
        size_ranges: per level the ``size_range`` of :func:`grid_labels`; None: every size.

    Returns:
        Bool [B, N].

    Raises:
        ValueError: numbers of images, levels, strides or ranges differ.
    """
    ranges = [EVERY_SIZE] * layout.num_levels if size_ranges is None else size_ranges
    if len(boxes_xyxy_px) != layout.batch_size:
        raise ValueError(f"boxes of {len(boxes_xyxy_px)} images for {layout.batch_size} images")
    if len(strides) != layout.num_levels or len(ranges) != layout.num_levels:
        raise ValueError(
            f"{layout.num_levels} levels need as many strides and size ranges, "
            f"got {len(strides)} and {len(ranges)}"
        )
    labels_BN = torch.stack(
        [
            torch.cat(
                [
                    grid_labels(
                        boxes_G4,
                        height=height,
                        width=width,
                        stride=stride,
                        rule=rule,
                        size_range=size_range,
                    ).flatten()
                    for (height, width), stride, size_range in zip(
                        layout.level_shapes, strides, ranges, strict=True
                    )
                ]
            )
            for boxes_G4 in boxes_xyxy_px
        ]
    )
    return labels_BN & layout.valid_BN
