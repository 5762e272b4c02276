"""SPT (arXiv 2410.23608): a Swin backbone with attention among selected, packed tokens."""

from spt_backbone.backbone import SPT
from spt_backbone.selection import SelectionRule

__all__ = ["SPT", "SelectionRule"]
