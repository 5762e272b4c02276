"""Softmax cross entropy with weights and a choice of averaging."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from detrex.modeling.losses.utils import weight_reduce_loss
from torch import nn

_IGNORE_INDEX = -100
"""Label that ``torch.nn.functional.cross_entropy`` leaves out by default."""


def cross_entropy(
    preds: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor | None = None,
    class_weight: torch.Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | None = None,
    ignore_index: int | None = _IGNORE_INDEX,
    avg_non_ignore: bool = False,
) -> torch.Tensor:
    """Compute the softmax cross entropy of logits.

    Args:
        preds: logits [N, C] or [N, C, ...].
        targets: labels [N] or [N, ...].
        weight: factors, the shape of ``targets``.
        class_weight: factor [C] of each class.
        reduction: "none", "mean" or "sum".
        avg_factor: divisor of "mean" instead of the number of labels.
        ignore_index: label without a loss.
        avg_non_ignore: let "mean" count only the other labels.
    """
    ignore_index = _IGNORE_INDEX if ignore_index is None else ignore_index
    loss = F.cross_entropy(
        preds, targets, weight=class_weight, reduction="none", ignore_index=ignore_index
    )
    if avg_factor is None and avg_non_ignore and reduction == "mean":
        avg_factor = int((targets != ignore_index).sum())
    if weight is not None:
        weight = weight.float()
    return weight_reduce_loss(loss, weight, reduction, avg_factor)


class CrossEntropyLoss(nn.Module):
    """Softmax cross entropy of class logits.

    Args:
        reduction: "none", "mean" or "sum".
        loss_weight: factor of the result.
        ignore_index: label without a loss.
        avg_non_ignore: let "mean" count only the other labels.
    """

    def __init__(
        self,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        ignore_index: int | None = None,
        avg_non_ignore: bool = False,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.ignore_index = ignore_index
        self.avg_non_ignore = avg_non_ignore
        if ignore_index is not None and not avg_non_ignore and reduction == "mean":
            warnings.warn(
                "the mean also counts ignored labels; set avg_non_ignore=True to leave them out"
            )

    def forward(
        self,
        preds: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor | None = None,
        avg_factor: float | None = None,
        class_weight: torch.Tensor | None = None,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Compute the loss of logits [N, C]; ``ignore_index`` overrides the module's."""
        return self.loss_weight * cross_entropy(
            preds,
            targets,
            weight,
            class_weight,
            reduction=self.reduction,
            avg_factor=avg_factor,
            ignore_index=self.ignore_index if ignore_index is None else ignore_index,
            avg_non_ignore=self.avg_non_ignore,
        )
