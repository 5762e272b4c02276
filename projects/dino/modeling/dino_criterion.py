"""DINO's losses under upstream's name and arguments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tokendetr.detector import DenoisingCriterion


class DINOCriterion(DenoisingCriterion):
    """Losses of all layers, of the selected proposals and of the denoising queries.

    Args:
        num_classes: number of classes.
        matcher: Hungarian matcher.
        weight_dict: weight of each loss by name.
        losses: which losses: "class", "boxes".
        eos_coef: weight of "no object" with ``loss_class_type="ce_loss"``; None is 0.1.
        loss_class_type: "focal_loss" or "ce_loss".
        alpha: focal loss' weight of positives.
        gamma: focal loss' focusing exponent.
        two_stage_binary_cls: train proposals on class 0 for every object.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: dict[str, float],
        losses: Sequence[str] = ("class", "boxes"),
        eos_coef: float | None = None,
        loss_class_type: str = "focal_loss",
        alpha: float = 0.25,
        gamma: float = 2,
        two_stage_binary_cls: bool = False,
    ) -> None:
        no_object = 0.1 if eos_coef is None else eos_coef
        super().__init__(
            num_classes, matcher, weight_dict, losses, no_object, loss_class_type, alpha, gamma
        )
        self.binary_encoder_targets = two_stage_binary_cls
