"""Terms of the matching cost, each a matrix [queries, ground truth]."""

import torch
from detrex.layers.box_ops import generalized_box_iou
from torch import nn


def _focal_cost(
    pred_logits: torch.Tensor, gt_labels: torch.Tensor, alpha: float, gamma: float, eps: float
) -> torch.Tensor:
    """Focal loss of classifying query q as ``gt_labels[g]`` minus that of background.

    Args:
        pred_logits: [Q, C].
        gt_labels: integers [G].
        alpha: weight of positives against negatives.
        gamma: focusing exponent, which down-weights easy examples.
        eps: added inside the logarithms.

    Returns:
        [Q, G].
    """
    prob = pred_logits.sigmoid()
    as_background = (1 - alpha) * prob**gamma * -(1 - prob + eps).log()
    as_class = alpha * (1 - prob) ** gamma * -(prob + eps).log()
    return as_class[:, gt_labels] - as_background[:, gt_labels]


class FocalLossCost(nn.Module):
    """Classification cost of detectors trained with the focal loss.

    Args:
        alpha: weight of positives against negatives.
        gamma: focusing exponent, which down-weights easy examples.
        weight: factor of the cost.
        eps: added inside the logarithms.
    """

    def __init__(
        self, alpha: float = 0.25, gamma: float = 2.0, weight: float = 1.0, eps: float = 1e-8
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.weight = weight
        self.eps = eps

    def forward(self, pred_logits: torch.Tensor, gt_labels: torch.Tensor) -> torch.Tensor:
        """Return the cost [Q, G] of logits [Q, C] for labels [G]."""
        return self.weight * _focal_cost(pred_logits, gt_labels, self.alpha, self.gamma, self.eps)


class CrossEntropyCost(nn.Module):
    """Minus the softmax probability of the class; ``weight`` is its factor."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, pred_logits: torch.Tensor, gt_labels: torch.Tensor) -> torch.Tensor:
        """Return the cost [Q, G] of logits [Q, C] for labels [G]."""
        return -self.weight * pred_logits.softmax(-1)[:, gt_labels]


class GIoUCost(nn.Module):
    """Minus the generalized IoU; ``weight`` is its factor."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, pred_bboxes: torch.Tensor, gt_bboxes: torch.Tensor) -> torch.Tensor:
        """Return the cost [Q, G] of xyxy boxes [Q, 4] for xyxy boxes [G, 4]."""
        return -self.weight * generalized_box_iou(pred_bboxes, gt_bboxes)


class L1Cost(nn.Module):
    """Sum of absolute coordinate differences; ``weight`` is its factor."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, pred_bboxes: torch.Tensor, gt_bboxes: torch.Tensor) -> torch.Tensor:
        """Return the cost [Q, G] of normalized cxcywh boxes [Q, 4] for boxes [G, 4]."""
        return self.weight * torch.cdist(pred_bboxes, gt_bboxes, p=1)
