"""Deformable DETR's losses under upstream's name and arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from tokendetr.detector import LayerwiseCriterion


class DeformableCriterion(LayerwiseCriterion):
    """Losses of all layers; with two stages, of every encoder token against class 0.

    Args: those of ``detrex.modeling.criterion.SetCriterion``.
    """

    binary_encoder_targets = True

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: Mapping[str, float],
        losses: Sequence[str] = ("class", "boxes"),
        eos_coef: float = 0.1,
        loss_class_type: str = "focal_loss",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__(
            num_classes, matcher, weight_dict, losses, eos_coef, loss_class_type, alpha, gamma
        )
