"""Greedy non-maximum suppression, exact, in plain torch."""

import torch
from torch import Tensor

__all__ = ["batched_nms", "nms"]

_BLOCK = 1024


def _iou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """Compute the IoU of xyxy boxes, [N, M]; empty unions give 0."""
    corner_low = torch.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    corner_high = torch.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    inter_NM = (corner_high - corner_low).clamp(min=0).prod(dim=2)
    area_N = (a_N4[:, 2:] - a_N4[:, :2]).prod(dim=1)
    area_M = (b_M4[:, 2:] - b_M4[:, :2]).prod(dim=1)
    union_NM = area_N[:, None] + area_M[None, :] - inter_NM
    return torch.where(inter_NM > 0, inter_NM / union_NM, torch.zeros_like(inter_NM))


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Apply greedy non-maximum suppression within each group of boxes.

    Boxes of different groups do not suppress each other. Boxes are processed by descending score
    (ties in input order) in blocks. All boxes kept so far first suppress those of a block; inside
    it, ``keep = not suppressed by a kept earlier box`` is iterated to its fixed point, which is the
    greedy solution because only earlier boxes suppress later ones.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        idxs: [N] group of each box, such as its class.
        iou_threshold: a box is dropped when its IoU with a kept, better box of its group exceeds
            this.

    Returns:
        Indices of the kept boxes, int64, by descending score.
    """
    assert boxes.shape[-1] == 4
    boxes = boxes.float()
    order = scores.argsort(descending=True, stable=True)
    kept = order[:0]
    for start in range(0, order.numel(), _BLOCK):
        block = order[start : start + _BLOCK]
        same = idxs[kept][:, None] == idxs[block][None, :]
        free = ~((_iou(boxes[kept], boxes[block]) > iou_threshold) & same).any(dim=0)
        block = block[free]
        same = idxs[block][:, None] == idxs[block][None, :]
        beats = ((_iou(boxes[block], boxes[block]) > iou_threshold) & same).triu(diagonal=1)
        keep = torch.ones_like(block, dtype=torch.bool)
        while True:
            updated = ~(beats & keep[:, None]).any(dim=0)
            if torch.equal(updated, keep):
                break
            keep = updated
        kept = torch.cat([kept, block[keep]])
    return kept


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Apply :func:`batched_nms` with all boxes in one group."""
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)
