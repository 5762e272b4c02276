"""Tokens of feature pyramids: layout, selection, reduction and restoration."""

from tokendetr.tokens.aggregate import (
    AffinityMatch,
    match_by_affinity,
    token_cosines,
)
from tokendetr.tokens.assignment import (
    Assignment,
    ClusterAssignment,
    DenseAssignment,
    SimilarityAssignment,
    assign_by_similarity,
)
from tokendetr.tokens.budget import MassBudget
from tokendetr.tokens.counts import Counts, TracedCounts, longest_count, map_counts
from tokendetr.tokens.labels import box_labels, grid_labels, overlapping_size_ranges
from tokendetr.tokens.layout import LevelLayout
from tokendetr.tokens.maps.base import Identity, Keep, TokenMap, flat_index, put_rows, take_rows
from tokendetr.tokens.maps.merge import AffinityGroup, Merge, WindowGroup
from tokendetr.tokens.maps.mix import Mix, Recovery, nearest_recovery
from tokendetr.tokens.maps.pack import Pack, window_order
from tokendetr.tokens.maps.planned_merge import PlannedMerge
from tokendetr.tokens.merge_order import MergedOrder, merged_order
from tokendetr.tokens.merge_plan import CoarsestLevel, MergePlan, ScoredWindows, plan_merge
from tokendetr.tokens.norms import token_norms
from tokendetr.tokens.select import (
    chosen_tokens,
    partition,
    ragged_index,
    select_tokens,
    topk_valid,
    valid_from_counts,
)
from tokendetr.tokens.similarity import token_similarity
from tokendetr.tokens.splat import smallest_covering_set, splat_attention
from tokendetr.tokens.window_choice import ChosenWindows
from tokendetr.tokens.windows import (
    LevelWindows,
    inverse_norms,
    split_evenly,
    spread_order,
    spread_tokens,
    window_coherence,
    window_shapes,
)

__all__ = [
    "AffinityGroup",
    "AffinityMatch",
    "Assignment",
    "ChosenWindows",
    "ClusterAssignment",
    "CoarsestLevel",
    "Counts",
    "DenseAssignment",
    "Identity",
    "Keep",
    "LevelLayout",
    "LevelWindows",
    "MassBudget",
    "Merge",
    "MergePlan",
    "MergedOrder",
    "Mix",
    "Pack",
    "PlannedMerge",
    "Recovery",
    "ScoredWindows",
    "SimilarityAssignment",
    "TokenMap",
    "TracedCounts",
    "WindowGroup",
    "assign_by_similarity",
    "box_labels",
    "chosen_tokens",
    "flat_index",
    "grid_labels",
    "inverse_norms",
    "longest_count",
    "map_counts",
    "match_by_affinity",
    "merged_order",
    "nearest_recovery",
    "overlapping_size_ranges",
    "partition",
    "plan_merge",
    "put_rows",
    "ragged_index",
    "select_tokens",
    "smallest_covering_set",
    "splat_attention",
    "split_evenly",
    "spread_order",
    "spread_tokens",
    "take_rows",
    "token_cosines",
    "token_norms",
    "token_similarity",
    "topk_valid",
    "valid_from_counts",
    "window_coherence",
    "window_order",
    "window_shapes",
]
