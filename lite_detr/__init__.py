"""Lite DETR (CVPR 2023), for comparison: most encoder layers update the coarse levels alone."""

from lite_detr.sparsifier import LitePlan, LiteSparsifier, NarrowFeedForward

__all__ = ["LitePlan", "LiteSparsifier", "NarrowFeedForward"]
