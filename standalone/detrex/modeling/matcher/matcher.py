"""Hungarian matching of predictions with ground truth (Carion et al., 2020)."""

from collections.abc import Mapping, Sequence

import torch
from detrex.layers.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from detrex.modeling.matcher._assignment import Indices, assign, matchable
from detrex.modeling.matcher.match_cost import _focal_cost
from torch import nn

_EPS = 1e-8


class HungarianMatcher(nn.Module):
    """Match each ground-truth box with one prediction at the least total cost.

    Args:
        cost_class: factor of the classification cost.
        cost_bbox: factor of the L1 distance of normalized boxes.
        cost_giou: factor of minus the generalized IoU.
        cost_class_type: "focal_loss_cost" or "ce_cost".
        alpha: alpha of the focal cost.
        gamma: gamma of the focal cost.

    Raises:
        ValueError: all factors are 0, or an unknown ``cost_class_type``.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        cost_class_type: str = "focal_loss_cost",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if cost_class == 0 and cost_bbox == 0 and cost_giou == 0:
            raise ValueError("cost_class, cost_bbox and cost_giou cannot all be 0")
        if cost_class_type not in ("focal_loss_cost", "ce_cost"):
            raise ValueError(
                f"cost_class_type must be 'focal_loss_cost' or 'ce_cost', got {cost_class_type!r}"
            )
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.cost_class_type = cost_class_type
        self.alpha = alpha
        self.gamma = gamma

    def _class_cost(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the classification cost [Q, G] of logits [Q, C] for labels [G]."""
        if self.cost_class_type == "ce_cost":
            return -logits.softmax(-1)[:, labels]
        return _focal_cost(logits, labels, self.alpha, self.gamma, _EPS)

    @torch.no_grad()
    def forward(
        self,
        outputs: Mapping[str, torch.Tensor],
        targets: Sequence[Mapping[str, torch.Tensor]],
    ) -> Indices:
        """Match a batch.

        Args:
            outputs: "pred_logits" [B, Q, C] and "pred_boxes" [B, Q, 4] (normalized cxcywh).
            targets: per image "labels" [G] and "boxes" [G, 4] (normalized cxcywh).

        Returns:
            Per image the indices of min(Q, G) queries and of the boxes they are matched with.

        Raises:
            ValueError: predictions are not finite, or a box is inverted.
        """
        logits, boxes = matchable(outputs["pred_logits"], outputs["pred_boxes"])
        labels = torch.cat([target["labels"] for target in targets])
        truth = torch.cat([target["boxes"] for target in targets]).to(boxes.dtype)
        cost = (
            self.cost_bbox * torch.cdist(boxes, truth, p=1)
            + self.cost_class * self._class_cost(logits, labels)
            - self.cost_giou
            * generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(truth))
        )
        sizes = [len(target["boxes"]) for target in targets]
        return assign(cost, len(outputs["pred_logits"]), sizes)
