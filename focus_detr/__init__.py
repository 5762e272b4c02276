"""Focus-DETR (ICCV 2023): update foreground tokens only, with dual attention."""

from focus_detr.budget import FocusBudget, cascade_ratios
from focus_detr.published import from_published
from focus_detr.selector import ForegroundSelector
from focus_detr.sparsifier import PUBLISHED_OPTIONS, FocusPlan, FocusSparsifier
from tokendetr.encoder.object_attention import ObjectAttention

__all__ = [
    "PUBLISHED_OPTIONS",
    "FocusBudget",
    "FocusPlan",
    "FocusSparsifier",
    "ForegroundSelector",
    "ObjectAttention",
    "cascade_ratios",
    "from_published",
]
