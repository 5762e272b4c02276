"""Focal loss (Lin et al., 2017, "Focal Loss for Dense Object Detection")."""

import torch
import torch.nn.functional as F
from detrex.modeling.losses.utils import weight_reduce_loss
from torch import nn


def _modulate(
    cross_entropy: torch.Tensor,
    prob: torch.Tensor,
    targets: torch.Tensor,
    alpha: float,
    gamma: float,
) -> torch.Tensor:
    """Scale binary cross entropy by (1 - p_t) ** gamma and the class balance (if alpha >= 0)."""
    p_t = prob * targets + (1 - prob) * (1 - targets)
    loss = cross_entropy * (1 - p_t) ** gamma
    if alpha < 0:
        return loss
    return (alpha * targets + (1 - alpha) * (1 - targets)) * loss


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32, or unchanged in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sigmoid_focal_loss(
    preds: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "mean",
    avg_factor: float | None = None,
) -> torch.Tensor:
    """Compute the focal loss of logits.

    Args:
        preds: logits, any shape.
        targets: 0 or 1, the shape of ``preds``.
        weight: factors, see :func:`weight_reduce_loss`.
        alpha: weight in [0, 1] of positives against negatives; unused if negative.
        gamma: focusing exponent, which down-weights easy examples.
        reduction: "none", "mean" or "sum".
        avg_factor: divisor of "mean" instead of the number of elements.
    """
    preds, targets = _at_least_float32(preds), _at_least_float32(targets)
    cross_entropy = F.binary_cross_entropy_with_logits(preds, targets, reduction="none")
    loss = _modulate(cross_entropy, preds.sigmoid(), targets, alpha, gamma)
    return weight_reduce_loss(loss, weight, reduction, avg_factor)


def _one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Encode labels [N] as [N, num_classes] of 0 and 1; ``num_classes`` (background) is all 0."""
    return F.one_hot(labels, num_classes=num_classes + 1)[:, :num_classes]


def _focal_loss_with_prob(
    preds: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    avg_factor: float | None = None,
) -> torch.Tensor:
    """Compute the focal loss of probabilities.

    Args:
        preds: probabilities [N, C].
        targets: labels [N] in [0, C], C being background.
        weight: factors, see :func:`weight_reduce_loss`.
        alpha: see :func:`sigmoid_focal_loss`.
        gamma: see :func:`sigmoid_focal_loss`.
        reduction: "none", "mean" or "sum".
        avg_factor: divisor of "mean" instead of the number of elements.
    """
    one_hot = _one_hot(targets, preds.size(1)).type_as(preds)
    cross_entropy = F.binary_cross_entropy(preds, one_hot, reduction="none")
    loss = _modulate(cross_entropy, preds, one_hot, alpha, gamma)
    return weight_reduce_loss(loss, weight, reduction, avg_factor)


class FocalLoss(nn.Module):
    """Focal loss of class predictions against labels.

    Args:
        alpha: see :func:`sigmoid_focal_loss`.
        gamma: see :func:`sigmoid_focal_loss`.
        reduction: "none", "mean" or "sum".
        loss_weight: factor of the result.
        activated: predictions are probabilities instead of logits.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.activated = activated

    def forward(
        self,
        preds: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor | None = None,
        avg_factor: float | None = None,
    ) -> torch.Tensor:
        """Compute the loss of predictions [N, C] and labels [N] in [0, C], C being background."""
        if self.activated:
            loss_function = _focal_loss_with_prob
        else:
            loss_function = sigmoid_focal_loss
            targets = _one_hot(targets, preds.size(1))
        return self.loss_weight * loss_function(
            preds,
            targets,
            weight,
            alpha=self.alpha,
            gamma=self.gamma,
            reduction=self.reduction,
            avg_factor=avg_factor,
        )
