"""Deformable DETR's losses under upstream's name."""

from __future__ import annotations

from tokendetr.detector import LayerwiseCriterion


class DeformableCriterion(LayerwiseCriterion):
    """Losses of all layers; with two stages, of every encoder token against class 0.

    Args: those of ``detrex.modeling.criterion.SetCriterion``.
    """

    binary_encoder_targets = True
