"""DN-Deformable DETR's losses under upstream's name."""

from tokendetr.detector import DenoisingCriterion


class DNCriterion(DenoisingCriterion):
    """Losses of all layers and of the denoising queries (suffixed ``_dn``).

    Args: those of ``detrex.modeling.criterion.SetCriterion``.
    """
