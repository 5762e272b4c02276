"""Hungarian matching with a cost assembled from modules."""

from collections.abc import Sequence

import torch
from detrex.layers.box_ops import box_cxcywh_to_xyxy
from detrex.modeling.matcher._assignment import Indices, assign, matchable
from detrex.modeling.matcher.match_cost import FocalLossCost, GIoUCost, L1Cost
from torch import nn


class HungarianMatcher(nn.Module):
    """Match each ground-truth box with one prediction at the least sum of three costs.

    Args:
        cost_class: cost of (logits, labels); by default the focal cost with weight 2.
        cost_bbox: cost of (cxcywh boxes, cxcywh boxes); by default L1 with weight 5.
        cost_giou: cost of (xyxy boxes, xyxy boxes); by default generalized IoU with weight 2.
    """

    def __init__(
        self,
        cost_class: nn.Module | None = None,
        cost_bbox: nn.Module | None = None,
        cost_giou: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.cost_class = FocalLossCost(weight=2.0) if cost_class is None else cost_class
        self.cost_bbox = L1Cost(weight=5.0) if cost_bbox is None else cost_bbox
        self.cost_giou = GIoUCost(weight=2.0) if cost_giou is None else cost_giou

    @torch.no_grad()
    def forward(
        self,
        pred_logits: torch.Tensor,
        pred_bboxes: torch.Tensor,
        gt_labels: Sequence[torch.Tensor],
        gt_bboxes: Sequence[torch.Tensor],
    ) -> Indices:
        """Match a batch.

        Args:
            pred_logits: [B, Q, C].
            pred_bboxes: normalized cxcywh boxes [B, Q, 4].
            gt_labels: per image [G].
            gt_bboxes: per image normalized cxcywh boxes [G, 4].

        Returns:
            Per image the indices of min(Q, G) queries and of the boxes they are matched with.
        """
        logits, boxes = matchable(pred_logits, pred_bboxes)
        truth = torch.cat(list(gt_bboxes)).to(boxes.dtype)
        cost = (
            self.cost_class(logits, torch.cat(list(gt_labels)))
            + self.cost_bbox(boxes, truth)
            + self.cost_giou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(truth))
        )
        return assign(cost, len(pred_logits), [len(image) for image in gt_bboxes])
