"""Boxes: conversion between the two formats, overlap, and boxes around masks."""

import torch

_EPS = 1e-6
"""Added to the denominators of both overlaps, so that boxes without area give 0 instead of NaN."""


def box_cxcywh_to_xyxy(bbox: torch.Tensor) -> torch.Tensor:
    """Convert boxes [..., 4] from (center x, center y, width, height) to (x0, y0, x1, y1)."""
    cx, cy, w, h = bbox.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def box_xyxy_to_cxcywh(bbox: torch.Tensor) -> torch.Tensor:
    """Convert boxes [..., 4] from (x0, y0, x1, y1) to (center x, center y, width, height)."""
    x0, y0, x1, y1 = bbox.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)


def _area(boxes: torch.Tensor) -> torch.Tensor:
    """Return signed areas [...] of xyxy boxes [..., 4], in at least float32 against overflow."""
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes = boxes.float()
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _extent_area(top_left: torch.Tensor, bottom_right: torch.Tensor) -> torch.Tensor:
    """Return areas [...] between corners [..., 2]; 0 if they are inverted."""
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    return width * height


def _broadcast_iou(
    boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return IoU and union area of xyxy boxes with broadcastable leading dimensions."""
    inter = _extent_area(
        torch.max(boxes1[..., :2], boxes2[..., :2]), torch.min(boxes1[..., 2:], boxes2[..., 2:])
    )
    union = _area(boxes1) + _area(boxes2) - inter
    return inter / (union + eps), union


def _broadcast_giou(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the generalized IoU of xyxy boxes with broadcastable leading dimensions."""
    iou, union = _broadcast_iou(boxes1, boxes2, eps)
    hull = _extent_area(
        torch.min(boxes1[..., :2], boxes2[..., :2]), torch.max(boxes1[..., 2:], boxes2[..., 2:])
    )
    return iou - (hull - union) / (hull + eps)


def box_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the IoU of every pair of boxes from two sets.

    Args:
        boxes1: xyxy boxes [N, 4].
        boxes2: xyxy boxes [M, 4], in the same units.

    Returns:
        The intersection over union and the union area, both [N, M].
    """
    return _broadcast_iou(boxes1[:, None], boxes2[None], _EPS)


def _require_ordered(boxes: torch.Tensor, name: str) -> None:
    """Raise ValueError when a box is inverted or not a number."""
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(-1)
    if not ordered.all():
        index = int((~ordered).nonzero()[0])
        raise ValueError(
            f"generalized IoU: {int((~ordered).sum())} of {len(boxes)} boxes in {name} are inverted"
            f" or NaN (x1 >= x0 and y1 >= y0 must hold); the first is {name}[{index}] ="
            f" {boxes[index].tolist()}"
        )


def generalized_box_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Compute the generalized IoU (Rezatofighi et al., 2019) of every pair of boxes.

    Args:
        boxes1: xyxy boxes [N, 4].
        boxes2: xyxy boxes [M, 4], in the same units.

    Returns:
        [N, M], each in (-1, 1].

    Raises:
        ValueError: a box has x1 < x0 or y1 < y0 or holds a NaN.
    """
    _require_ordered(boxes1, "boxes1")
    _require_ordered(boxes2, "boxes2")
    return _broadcast_giou(boxes1[:, None], boxes2[None], _EPS)


def _paired_generalized_box_iou(
    boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float = _EPS
) -> torch.Tensor:
    """Compute the generalized IoU of boxes at the same index of two sets.

    The diagonal of :func:`generalized_box_iou` without the rest of the matrix.

    Args:
        boxes1: xyxy boxes [N, 4].
        boxes2: xyxy boxes [N, 4], in the same units.
        eps: added to the areas that are divided by.

    Returns:
        [N], each in (-1, 1].

    Raises:
        ValueError: a box has x1 < x0 or y1 < y0 or holds a NaN.
    """
    _require_ordered(boxes1, "boxes1")
    _require_ordered(boxes2, "boxes2")
    return _broadcast_giou(boxes1, boxes2, eps)


def masks_to_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Return the tight boxes around masks.

    Args:
        masks: [N, H, W], non-zero inside.

    Returns:
        float32 [N, 4] on the masks' device: xyxy of the first and last pixel inside (both
        inclusive); zeros for a mask without pixels.
    """
    if masks.numel() == 0:
        return torch.zeros((len(masks), 4), device=masks.device)
    inside = masks.bool()
    extents = []
    for occupied in (inside.any(1), inside.any(2)):
        position = torch.arange(occupied.shape[1], device=masks.device, dtype=torch.float)
        low = torch.where(occupied, position, torch.inf).amin(1)
        high = torch.where(occupied, position, -torch.inf).amax(1)
        extents.append((low, high))
    (x0, x1), (y0, y1) = extents
    boxes = torch.stack([x0, y0, x1, y1], 1)
    return torch.where(inside.flatten(1).any(1)[:, None], boxes, 0.0)
