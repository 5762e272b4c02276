"""DAB-Deformable DETR's losses under upstream's name."""

from tokendetr.detector import ProposalCriterion


class TwoStageCriterion(ProposalCriterion):
    """Losses of all layers and, with two stages, of the selected proposals.

    Args: as upstream; those of :class:`tokendetr.detector.ProposalCriterion`.
    """
