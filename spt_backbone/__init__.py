"""SPT (arXiv 2410.23608): a Swin backbone whose last stages attend among selected tokens, packed
into containers."""

from spt_backbone.backbone import SPT
from spt_backbone.selection import SelectionRule

__all__ = ["SPT", "SelectionRule"]
