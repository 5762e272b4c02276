"""Dynamic DETR's choice in a program that is being exported, whose inputs include the image sizes.

Shapes: B image, N all tokens, C channel, L level, S places of a level's windows, U tokens of the
coarsest level.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokendetr.compat.cached_property import cached_property
from tokendetr.errors import ExportError
from tokendetr.tokens import LevelLayout, TokenMap, inverse_norms, match_by_affinity, partition
from tokendetr.tokens.counts import TracedCounts
from tokendetr.tokens.maps.merge import Affinity
from tokendetr.tokens.maps.traced_merge import TracedMerge, TracedWindowGroup
from tokendetr.tokens.select import valid_from_counts
from tokendetr.tokens.traced_windows import (
    TracedWindows,
    merged_window_table,
    spread_token_table,
)

if TYPE_CHECKING:
    from dynamic_detr.sparsifier import DynamicSparsifier


class TracedChoice:
    """Choice of the windows and tokens that merge in each stage of one pass.

    Args:
        layout: the batch, with ``traced_sizes_BL2``.
        options: the sparsifier.

    Raises:
        ExportError: for an option whose result is not a function of fixed shapes.
    """

    def __init__(self, layout: LevelLayout, options: DynamicSparsifier) -> None:
        self.layout = layout
        self.options = options
        self._windows: dict[int, TracedWindows] = {}
        if options.selection != "coherence":
            raise ExportError(
                f"selection={options.selection!r} differs from call to call, so an exported file "
                "cannot be verified: use selection='coherence'"
            )
        if options.merge == "max":
            raise ExportError(
                "merge='max' is not exported for images smaller than the canvas: export the model "
                "for images that fill it (padding=False, --no-padding)"
            )

    def make_map(self, ratios: Sequence[float], memory_BNC: Tensor) -> TokenMap:
        """Return the map of a stage with these ratios of the levels, finest first."""
        layout, options = self.layout, self.options
        inverse_norm_BN = inverse_norms(memory_BNC)
        groups, keep, longest = [], [], 0
        for level, (ratio, valid_BT) in enumerate(
            zip(ratios[:-1], layout.split(layout.valid_BN), strict=False)
        ):
            group, most = self._windows_of(level, ratio, memory_BNC, inverse_norm_BN)
            left_BT = ~group.merged_BT | group.windows.anchor_BT
            groups.append(group)
            keep.append(left_BT & valid_BT)
            longest += most
        important_BU, affinity, most = self._coarsest(ratios[-1], memory_BNC)
        keep_BN = torch.cat([*keep, important_BU], dim=1)
        counts = TracedCounts(keep_BN.sum(dim=1), longest + most)
        order_BN, _ = partition(keep_BN)
        assert options.merge != "max"
        return TracedMerge(
            index_BK=order_BN[:, : counts.longest],
            valid_BK=valid_from_counts(counts, counts.longest, order_BN.device),
            groups=groups,
            affinity=affinity if options.affinity_matching else None,
            rule=options.merge,
            locate="anchor" if options.anchor == "bottom_right" else "mean",
            broadcast=options.window_update == "broadcast",
            num_all=layout.num_tokens,
        )

    @cached_property
    def _token_order_UU(self) -> Tensor:
        """Order of equally rare tokens of the coarsest level, one row for each real size of it."""
        return spread_token_table(*self.layout.level_shapes[-1]).to(self.layout.device)

    def _row(self, level: int) -> Tensor:
        """Return each image's row in a table of a level's sizes, long [B]."""
        assert self.layout.traced_sizes_BL2 is not None
        size_B2 = self.layout.traced_sizes_BL2[:, level] - 1
        return size_B2[:, 0] * self.layout.level_shapes[level][1] + size_B2[:, 1]

    def _windows_of(
        self, level: int, ratio: float, memory_BNC: Tensor, inverse_norm_BN: Tensor
    ) -> tuple[TracedWindowGroup, int]:
        """Return a level's windows with those that merge, and the most tokens that can be left."""
        budget = self.options.budget
        if level not in self._windows:
            window = budget.window_sizes[level]
            self._windows[level] = TracedWindows.of(self.layout, level, window)
        windows = self._windows[level]
        merged = partial(budget.merged_windows, level, ratio)
        table, most = merged_window_table(*self.layout.level_shapes[level], merged)
        count_BK = table.to(memory_BNC.device).index_select(0, self._row(level))
        score_BS = windows.coherence(memory_BNC, inverse_norm_BN)
        return TracedWindowGroup(windows, windows.choose(score_BS, count_BK)), most

    def _coarsest(self, ratio: float, memory_BNC: Tensor) -> tuple[Tensor, Affinity | None, int]:
        """Return the coarsest level's important tokens, what they absorb, and their largest number.

        The tokens are bool [B, U]; what they absorb is None at ratio 1.
        """
        layout, options = self.layout, self.options
        level = layout.num_levels - 1
        valid_BU = layout.split(layout.valid_BN)[-1]
        if ratio == 1:
            return valid_BU, None, valid_BU.shape[1]
        existing = layout.level_counts(level)
        assert isinstance(existing, TracedCounts)
        important = existing.map(partial(options.budget.important_tokens, ratio))
        match = match_by_affinity(
            layout.split(memory_BNC)[-1],
            important_counts=important,
            valid_BN=valid_BU,
            valid_counts=existing,
            num_neighbors=options.num_neighbors,
            min_cosine=options.min_cosine,
            order_BN=self._token_order_UU.index_select(0, self._row(level)),
        )
        affinity = Affinity(
            neighbor_index_BUT=match.neighbor_index_BNT,
            absorbs_BUT=match.absorbs_BNT,
            absorbed_BUV=match.absorbed_BNN,
            start=layout.level_starts[-1],
            rule=options.merge,
        )
        return match.important_BN, affinity, important.longest
