"""The map of Dynamic DETR in a program that is being exported: all shapes are fixed.

Shapes: B image, N all tokens, K reduced tokens, C channel, T tokens of a level, S places of its
windows, U tokens of the coarsest level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokendetr.tokens.maps.base import AnchoredMap, take_rows
from tokendetr.tokens.maps.merge import Affinity
from tokendetr.tokens.traced_windows import TracedWindows


@dataclass(frozen=True)
class TracedWindowGroup:
    """The windows of a level, of which some become one token each.

    Attributes:
        windows: all windows of the level.
        chosen_BS: bool, True for those that merge.
    """

    windows: TracedWindows
    chosen_BS: Tensor

    @property
    def merged_BT(self) -> Tensor:
        """Bool [B, T], True for the level's tokens that are in a merging window."""
        return self.chosen_BS.gather(1, self.windows.window_BT)


class TracedMerge(AnchoredMap):
    """:class:`tokendetr.tokens.Merge`, computed by products and gathers of fixed shapes.

    Args:
        index_BK: as of ``Merge``.
        valid_BK: as of ``Merge``.
        groups: the windows of some levels.
        affinity: what the coarsest level's tokens absorb; None if none absorbs any.
        rule: "mean" or "sum" of a window's tokens, or "retain" the anchor's own features.
        locate: as of ``WindowGroup``.
        broadcast: as of ``Merge``.
        num_all: number of tokens N before reduction.
    """

    def __init__(
        self,
        *,
        index_BK: Tensor,
        valid_BK: Tensor | None,
        groups: Sequence[TracedWindowGroup],
        affinity: Affinity | None,
        rule: Literal["mean", "sum", "retain"],
        locate: Literal["anchor", "mean"],
        broadcast: bool,
        num_all: int,
    ) -> None:
        super().__init__(index_BK, valid_BK)
        self.groups = tuple(groups)
        self.affinity = affinity
        self.rule = rule
        self.locate = locate
        self.broadcast = broadcast
        self.num_all = num_all
        self._source_BK = self._sources().gather(1, index_BK)

    def _sources(self) -> Tensor:
        """Return each token's row, [B, N], in the sequence of all tokens followed by all windows.

        The anchor of a merged window has its window's row, all others their own.
        """
        batch = self._index_BK.shape[0]
        source_BN = torch.arange(self.num_all, device=self._index_BK.device).repeat(batch, 1)
        levels, end, behind = [], 0, self.num_all
        for group in self.groups:
            windows = group.windows
            own_BT = source_BN[:, windows.start : windows.start + windows.num_tokens]
            merged_BT = group.merged_BT & windows.anchor_BT
            levels += [source_BN[:, end : windows.start]]
            levels += [torch.where(merged_BT, behind + windows.window_BT, own_BT)]
            end = windows.start + windows.num_tokens
            behind += windows.valid_BS.shape[1]
        return torch.cat([*levels, source_BN[:, end:]], dim=1)

    def reduce(self, x_BNC: Tensor) -> Tensor:
        """Return single tokens unchanged and groups merged, [B, K, C]."""
        tokens_BNC = x_BNC
        if self.affinity is not None:
            level_BUC = self.affinity.merge_level(x_BNC)
            start, end = self.affinity.start, self.affinity.start + level_BUC.shape[1]
            tokens_BNC = torch.cat([x_BNC[:, :start], level_BUC, x_BNC[:, end:]], dim=1)
        if self.rule == "retain":
            return take_rows(tokens_BNC, self._index_BK)
        return self._with_windows(tokens_BNC, mean=self.rule == "mean")

    def _with_windows(self, x_BNC: Tensor, *, mean: bool) -> Tensor:
        rows = [x_BNC]
        for group in self.groups:
            windows = group.windows
            own_BTC = x_BNC[:, windows.start : windows.start + windows.num_tokens]
            rows.append(windows.mean(own_BTC) if mean else windows.add_up(own_BTC))
        return take_rows(torch.cat(rows, dim=1), self._source_BK)

    def restore(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return ``base_BNC`` with the anchors of merged windows replaced.

        When broadcasting, all cells of merged windows are replaced.
        """
        restored_BNC = super().restore(y_BKC, base_BNC)
        if not self.broadcast:
            return restored_BNC
        token_BN = torch.arange(self.num_all, device=base_BNC.device).repeat(len(base_BNC), 1)
        levels, end = [], 0
        for group in self.groups:
            windows = group.windows
            own = slice(windows.start, windows.start + windows.num_tokens)
            anchor_BT = windows.last_BS.gather(1, windows.window_BT) + windows.start
            levels += [token_BN[:, end : own.start]]
            levels += [torch.where(group.merged_BT, anchor_BT, token_BN[:, own])]
            end = own.stop
        return take_rows(restored_BNC, torch.cat([*levels, token_BN[:, end:]], dim=1))

    def select(self, x_BN: Tensor) -> Tensor:
        """Return attributes of the anchors, or means over windows with ``locate="mean"``."""
        if self.locate == "anchor":
            return super().select(x_BN)
        selected_BKC = self._with_windows(x_BN.flatten(2), mean=True)
        return selected_BKC.unflatten(2, x_BN.shape[2:])
