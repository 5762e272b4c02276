"""Lite DETR (CVPR 2023): most encoder layers update the coarse levels alone; a comparator."""

from lite_detr.sparsifier import LitePlan, LiteSparsifier, NarrowFeedForward

__all__ = ["LitePlan", "LiteSparsifier", "NarrowFeedForward"]
