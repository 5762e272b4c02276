"""Generalized IoU loss (Rezatofighi et al., 2019)."""

import torch
from detrex.layers.box_ops import _paired_generalized_box_iou
from detrex.modeling.losses.utils import weight_reduce_loss
from torch import nn


def giou_loss(
    preds: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    reduction: str = "mean",
    avg_factor: float | None = None,
) -> torch.Tensor:
    """Compute one minus the generalized IoU of box pairs; 0 without targets.

    Args:
        preds: xyxy boxes [N, 4].
        targets: xyxy boxes [N, 4].
        weight: factors [N].
        eps: added to the areas that are divided by.
        reduction: "none", "mean" or "sum".
        avg_factor: divisor of "mean" instead of N.

    Raises:
        ValueError: an inverted box.
    """
    if targets.numel() == 0:
        return preds.sum() * 0
    loss = 1 - _paired_generalized_box_iou(preds, targets, eps)
    return weight_reduce_loss(loss, weight, reduction, avg_factor)


class GIoULoss(nn.Module):
    """One minus the generalized IoU of box pairs.

    Args:
        eps: added to the areas that are divided by.
        reduction: "none", "mean" or "sum".
        loss_weight: factor of the result.
    """

    def __init__(
        self, eps: float = 1e-6, reduction: str = "mean", loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.eps = eps
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        preds: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor | None = None,
        avg_factor: float | None = None,
    ) -> torch.Tensor:
        """Compute the loss of xyxy boxes [N, 4] against their targets [N, 4]."""
        return self.loss_weight * giou_loss(
            preds,
            targets,
            weight,
            eps=self.eps,
            reduction=self.reduction,
            avg_factor=avg_factor,
        )
