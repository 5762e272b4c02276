"""A criterion assembled from loss modules."""

from collections.abc import Mapping
from typing import Any

import torch
from detrex.layers.box_ops import box_cxcywh_to_xyxy
from detrex.modeling.criterion._counting import average_num_boxes
from detrex.modeling.criterion.criterion import Indices, Losses, Targets, _batch_and_place
from detrex.modeling.losses import FocalLoss, GIoULoss, L1Loss
from detrex.modeling.matcher import ModifedMatcher
from torch import nn


class BaseCriterion(nn.Module):
    """Losses of matched predictions; the loss modules hold the weights.

    Args:
        num_classes: number of classes, without "no object".
        matcher: by default ``ModifedMatcher()`` with weights 2, 5, 2.
        loss_class: loss of (logits [N, C], labels [N]); by default the focal loss with weight 1.
        loss_bbox: loss of (cxcywh boxes, cxcywh boxes); by default L1 with weight 5.
        loss_giou: loss of (xyxy boxes, xyxy boxes); by default generalized IoU with weight 2.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module | None = None,
        loss_class: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
        loss_giou: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = ModifedMatcher() if matcher is None else matcher
        self.loss_class = FocalLoss() if loss_class is None else loss_class
        self.loss_bbox = L1Loss(loss_weight=5.0) if loss_bbox is None else loss_bbox
        self.loss_giou = GIoULoss(loss_weight=2.0) if loss_giou is None else loss_giou

    def _get_src_permutation_idx(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (image, query) of every matched prediction."""
        return _batch_and_place([query for query, _ in indices])

    def _get_tgt_permutation_idx(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (image, box) of every matched target."""
        return _batch_and_place([truth for _, truth in indices])

    def _matched(
        self, pred_boxes: torch.Tensor, targets: Targets, indices: Indices
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return matched predicted boxes and their targets, both cxcywh [N, 4]."""
        truth = [target["boxes"][i] for target, (_, i) in zip(targets, indices, strict=True)]
        return pred_boxes[self._get_src_permutation_idx(indices)], torch.cat(truth)

    def calculate_class_loss(
        self, pred_logits: torch.Tensor, targets: Targets, indices: Indices, num_boxes: float
    ) -> torch.Tensor:
        """Compute the classification loss of logits [B, Q, C]."""
        matched = [target["labels"][i] for target, (_, i) in zip(targets, indices, strict=True)]
        labels = torch.full(
            pred_logits.shape[:2], self.num_classes, dtype=torch.int64, device=pred_logits.device
        )
        labels[self._get_src_permutation_idx(indices)] = torch.cat(matched)
        return self.loss_class(pred_logits.flatten(0, 1), labels.flatten(), avg_factor=num_boxes)

    def calculate_bbox_loss(
        self, pred_boxes: torch.Tensor, targets: Targets, indices: Indices, num_boxes: float
    ) -> torch.Tensor:
        """Compute the regression loss of normalized cxcywh boxes [B, Q, 4]."""
        pred, truth = self._matched(pred_boxes, targets, indices)
        return self.loss_bbox(pred, truth, avg_factor=num_boxes)

    def calculate_giou_loss(
        self, pred_boxes: torch.Tensor, targets: Targets, indices: Indices, num_boxes: float
    ) -> torch.Tensor:
        """Compute the generalized IoU loss of normalized cxcywh boxes [B, Q, 4]."""
        pred, truth = self._matched(pred_boxes, targets, indices)
        return self.loss_giou(
            box_cxcywh_to_xyxy(pred), box_cxcywh_to_xyxy(truth), avg_factor=num_boxes
        )

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> Losses:
        """Match and compute all losses; arguments and result as for ``SetCriterion``."""
        num_boxes = average_num_boxes(targets, outputs["pred_logits"].device)
        labels = [target["labels"] for target in targets]
        boxes = [target["boxes"] for target in targets]
        layers: list[tuple[str, Mapping[str, torch.Tensor]]] = [("", outputs)]
        layers += [(f"_{i}", aux) for i, aux in enumerate(outputs.get("aux_outputs", ()))]
        losses: Losses = {}
        for suffix, layer in layers:
            logits, pred_boxes = layer["pred_logits"], layer["pred_boxes"]
            found = (targets, self.matcher(logits, pred_boxes, labels, boxes), num_boxes)
            losses["loss_class" + suffix] = self.calculate_class_loss(logits, *found)
            losses["loss_bbox" + suffix] = self.calculate_bbox_loss(pred_boxes, *found)
            losses["loss_giou" + suffix] = self.calculate_giou_loss(pred_boxes, *found)
        return losses
