"""L1 and smooth L1 losses."""

import torch
import torch.nn.functional as F
from detrex.modeling.losses.utils import weight_reduce_loss
from torch import nn


def _require_same_shape(preds: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise ValueError if broadcasting would silently pair the wrong elements."""
    if preds.shape != targets.shape:
        raise ValueError(
            f"predictions {tuple(preds.shape)} and targets {tuple(targets.shape)} differ in shape"
        )


def smooth_l1_loss(
    preds: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor | None = None,
    beta: float = 1.0,
    reduction: str = "mean",
    avg_factor: float | None = None,
) -> torch.Tensor:
    """Compute the L1 loss that is quadratic below ``beta``; 0 without targets.

    Args:
        preds: any shape.
        targets: the shape of ``preds``.
        weight: factors, see :func:`weight_reduce_loss`.
        beta: difference at which the loss becomes linear; below 1e-5 it is the L1 loss.
        reduction: "none", "mean" or "sum".
        avg_factor: divisor of "mean" instead of the number of elements.

    Raises:
        ValueError: ``beta`` is not positive, or the shapes differ.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if targets.numel() == 0:
        return preds.sum() * 0
    _require_same_shape(preds, targets)
    if beta < 1e-5:
        loss = (preds - targets).abs()
    else:
        loss = F.smooth_l1_loss(preds, targets, beta=beta, reduction="none")
    return weight_reduce_loss(loss, weight, reduction, avg_factor)


def l1_loss(
    preds: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | None = None,
) -> torch.Tensor:
    """Compute the absolute difference; 0 without targets. See :func:`smooth_l1_loss`.

    Raises:
        ValueError: the shapes differ.
    """
    if targets.numel() == 0:
        return preds.sum() * 0
    _require_same_shape(preds, targets)
    return weight_reduce_loss((preds - targets).abs(), weight, reduction, avg_factor)


class L1Loss(nn.Module):
    """Absolute difference of boxes.

    Args:
        reduction: "none", "mean" or "sum".
        loss_weight: factor of the result.
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        preds: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor | None = None,
        avg_factor: float | None = None,
    ) -> torch.Tensor:
        """Compute the loss of ``preds`` against ``targets`` of the same shape."""
        return self.loss_weight * l1_loss(
            preds, targets, weight=weight, reduction=self.reduction, avg_factor=avg_factor
        )
