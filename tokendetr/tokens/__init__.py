"""Tokens of feature pyramids: their layout, choosing among them, reducing and restoring them."""

from tokendetr.tokens.aggregate import (
    AffinityMatch,
    match_by_affinity,
    window_coherence,
    window_members,
    window_validity,
)
from tokendetr.tokens.labels import box_labels, grid_labels, overlapping_size_ranges
from tokendetr.tokens.layout import LevelLayout
from tokendetr.tokens.maps import Identity, Keep, TokenMap, put_rows, take_rows
from tokendetr.tokens.merge import AffinityGroup, Merge, WindowGroup
from tokendetr.tokens.score import ScoreHead
from tokendetr.tokens.select import partition, ragged_index, topk_valid, valid_from_counts
from tokendetr.tokens.splat import smallest_covering_set, splat_attention

__all__ = [
    "AffinityGroup",
    "AffinityMatch",
    "Identity",
    "Keep",
    "LevelLayout",
    "Merge",
    "ScoreHead",
    "TokenMap",
    "WindowGroup",
    "box_labels",
    "grid_labels",
    "match_by_affinity",
    "overlapping_size_ranges",
    "partition",
    "put_rows",
    "ragged_index",
    "smallest_covering_set",
    "splat_attention",
    "take_rows",
    "topk_valid",
    "valid_from_counts",
    "window_coherence",
    "window_members",
    "window_validity",
]
