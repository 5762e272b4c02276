"""Dice loss of masks (Milletari et al., 2016, "V-Net")."""

import torch
from detrex.modeling.losses.utils import weight_reduce_loss
from torch import nn


def dice_loss(
    preds: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-4,
    reduction: str = "mean",
    avg_factor: float | None = None,
) -> torch.Tensor:
    """Compute one minus the smoothed Dice coefficient of each mask.

    Args:
        preds: probabilities [N, ...].
        targets: 0 or 1, the shape of ``preds``.
        weight: factors [N].
        eps: added to numerator and denominator, beside the constant 1.
        reduction: "none", "mean" or "sum".
        avg_factor: divisor of "mean" instead of N.
    """
    preds = preds.flatten(1)
    targets = targets.flatten(1).to(preds.dtype)
    overlap = 2 * (preds * targets).sum(1) + eps
    total = preds.sum(1) + targets.sum(1) + eps
    return weight_reduce_loss(1 - (overlap + 1) / (total + 1), weight, reduction, avg_factor)


class DiceLoss(nn.Module):
    """Dice loss of masks.

    Args:
        use_sigmoid: predictions are logits.
        reduction: "none", "mean" or "sum".
        loss_weight: factor of the result.
        eps: see :func:`dice_loss`.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.use_sigmoid = use_sigmoid
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.eps = eps

    def forward(
        self,
        preds: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor | None = None,
        avg_factor: float | None = None,
    ) -> torch.Tensor:
        """Compute the loss of masks [N, ...] against their targets."""
        if self.use_sigmoid:
            preds = preds.sigmoid()
        return self.loss_weight * dice_loss(
            preds,
            targets,
            weight,
            eps=self.eps,
            reduction=self.reduction,
            avg_factor=avg_factor,
        )
