"""H-Deformable DETR's losses of one branch, under upstream's name."""

from tokendetr.detector import LayerwiseCriterion


class DeformableCriterion(LayerwiseCriterion):
    """Losses of all layers; with two stages, of all encoder tokens against class 0.

    Args: those of ``detrex.modeling.criterion.SetCriterion``.
    """

    binary_encoder_targets = True
