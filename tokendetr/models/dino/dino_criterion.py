"""DINO's losses under upstream's name and arguments."""

from __future__ import annotations

from tokendetr.detector import DenoisingCriterion, ProposalCriterion


class DINOCriterion(DenoisingCriterion, ProposalCriterion):
    """Losses of all layers, of the selected proposals and of the denoising queries.

    Args: as upstream; those of :class:`tokendetr.detector.ProposalCriterion`.
    """
