"""The plan of a merge: the windows and tokens that merge, and the order of what results.

Shapes: B image, N all tokens, K tokens of the merged sequence, S windows, E their members, U tokens
of the coarsest level. Nothing here carries a gradient.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokendetr.ops.token_merging import merges_by_kernel, plan_merge_kernel
from tokendetr.tokens.aggregate import AffinityMatch, match_cosines
from tokendetr.tokens.merge_order import MergedOrder, merged_order
from tokendetr.tokens.window_choice import ChosenWindows, chosen_classes
from tokendetr.tokens.windows import LevelWindows


@dataclass(frozen=True)
class ScoredWindows:
    """Windows of which the best merge.

    Attributes:
        windows: of the levels that merge windows.
        score_S: float, higher is better; NaN counts as the lowest score.
        counts: number of windows to choose from each class.
    """

    windows: LevelWindows
    score_S: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class CoarsestLevel:
    """The coarsest level, the last of the sequence, of which only important tokens stay.

    Attributes:
        cosine_BUU: its :func:`tokendetr.tokens.token_cosines`.
        order_BU: long, the order in which equally rare tokens are chosen.
        valid_BU: bool, True for real tokens; None if all are.
        valid_counts: real tokens of each image.
        important_counts: important tokens of each image, at most its real ones.
        num_neighbors: as in :func:`tokendetr.tokens.match_by_affinity`.
        min_cosine: as there.
        score_BU: float scores that replace rarity; None: rarity.
    """

    cosine_BUU: Tensor
    order_BU: Tensor
    valid_BU: Tensor | None
    valid_counts: tuple[int, ...]
    important_counts: tuple[int, ...]
    num_neighbors: int
    min_cosine: float
    score_BU: Tensor | None = None

    @property
    def neighbors(self) -> int:
        """Number of neighbors that a token of the level can have."""
        return min(self.num_neighbors, self.cosine_BUU.shape[1])


@dataclass(frozen=True)
class MergePlan:
    """What merges, and where it stands.

    Attributes:
        windows: those that merge; None: none.
        match: of the coarsest level's tokens; None if all of them stay.
        order: of the merged sequence.
    """

    windows: ChosenWindows | None
    match: AffinityMatch | None
    order: MergedOrder


@torch.no_grad()
def plan_merge(
    valid_BN: Tensor,
    length: int,
    *,
    windows: ScoredWindows | None,
    level: CoarsestLevel | None,
    absorbs: bool,
) -> MergePlan:
    """Choose the windows that merge, match the coarsest level's tokens, and order what results.

    Args:
        valid_BN: bool, True for real tokens.
        length: tokens K of the longest image after merging.
        windows: None: none merge.
        level: None: all tokens of the coarsest level stay.
        absorbs: let important tokens of that level absorb others; otherwise these are left out.
    """
    scores = [] if windows is None else [windows.score_S]
    if level is not None:
        scores += [score for score in (level.cosine_BUU, level.score_BU) if score is not None]
    narrow = all(score.dtype == torch.float32 for score in scores)
    if narrow and merges_by_kernel(valid_BN):
        return _by_kernel(valid_BN, length, windows, level, absorbs)
    chosen = None if windows is None else windows.windows.choose(windows.score_S, windows.counts)
    match = None
    if level is not None:
        match = match_cosines(
            level.cosine_BUU,
            important_counts=level.important_counts,
            valid_BN=level.valid_BU,
            valid_counts=level.valid_counts,
            num_neighbors=level.num_neighbors,
            min_cosine=level.min_cosine,
            score_BN=level.score_BU,
            order_BN=level.order_BU,
        )
    order = merged_order(
        valid_BN,
        length,
        windows=chosen,
        important_BU=None if match is None else match.important_BN,
        absorber_BA=match.index_BK if match is not None and absorbs else None,
        absorber_counts=level.important_counts if level is not None and absorbs else (),
    )
    return MergePlan(chosen, match, order)


def _by_kernel(
    valid_BN: Tensor,
    length: int,
    windows: ScoredWindows | None,
    level: CoarsestLevel | None,
    absorbs: bool,
) -> MergePlan:
    options: dict[str, Any] = {}
    classes = None
    if windows is not None:
        classes = chosen_classes(windows.windows.class_sizes, windows.counts)
        options |= {
            "score_S": windows.score_S,
            "token_SX": windows.windows.token_SX,
            "number": classes.number,
            "cells": classes.cells,
            "counts": classes.counts,
        }
    if level is not None:
        options |= {
            "cosine_BUU": level.cosine_BUU,
            "order_BU": level.order_BU,
            "valid_BU": level.valid_BU,
            "score_BU": level.score_BU,
            "valid_counts": level.valid_counts,
            "important_counts": level.important_counts,
            "neighbors": level.neighbors,
            "min_cosine": level.min_cosine,
            "absorbs": absorbs,
        }
    member_E, *planned = plan_merge_kernel(valid_BN, length, **options)
    return MergePlan(
        None if classes is None else ChosenWindows(member_E, classes.sizes),
        None if level is None else AffinityMatch(*planned[:6]),
        MergedOrder(*planned[6:]),
    )
