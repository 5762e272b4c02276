"""Merge tokens: windows that become one token, and tokens that others of their level absorb.

Shapes: B image, N all tokens, K reduced tokens, C channel, R merged tokens of the whole batch, P
members of each, U tokens of a level (V those that absorb), T neighbors of a token, E all pairs of
a token and its neighbor. "Flat" indices count over the batch: ``image * N + token`` and
``image * K + slot``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokendetr.compat.cached_property import cached_property
from tokendetr.tokens.assignment import without_autocast
from tokendetr.tokens.maps.base import AnchoredMap, take_rows

MergeRule = Literal["mean", "sum", "max", "retain"]
MERGE_RULES = ("mean", "sum", "max", "retain")


@dataclass(frozen=True)
class WindowGroup:
    """Windows that are merged into one token each.

    Attributes:
        slot_R: long, the flat reduced token of each window.
        member_RP: long, the flat tokens of each window; the last one is the window's anchor.
        rule: "mean", "sum" or "max" of the members, or "retain": the anchor's own features.
        locate: position and reference point of the merged token: those of its "anchor", or its
            members' "mean".
    """

    slot_R: Tensor
    member_RP: Tensor
    rule: MergeRule = "mean"
    locate: Literal["anchor", "mean"] = "anchor"

    def merge(self, x_BNC: Tensor, rule: MergeRule | None = None) -> Tensor:
        """Return the merged tokens [R, C]."""
        rule = rule or self.rule
        flat = x_BNC.flatten(0, 1)
        if rule == "retain":
            return flat.index_select(0, self.member_RP[:, -1])
        members_RPC = flat.index_select(0, self.member_RP.flatten()).view(
            *self.member_RP.shape, flat.shape[1]
        )
        if rule == "max":
            return members_RPC.amax(dim=1)
        return members_RPC.mean(dim=1) if rule == "mean" else members_RPC.sum(dim=1)

    def add_weights(self, weights_KN: Tensor) -> None:
        """Write uniform rows (the anchor's alone for "retain")."""
        weights_KN[self.slot_R] = 0.0
        members_RP = self.member_RP[:, -1:] if self.rule == "retain" else self.member_RP
        share = 1.0 if self.rule == "sum" else 1.0 / max(members_RP.shape[1], 1)
        weights_KN[self.slot_R[:, None], members_RP] = share

    def add_sizes(self, size_K: Tensor) -> None:
        """Write the number of members of each window."""
        size_K[self.slot_R] = float(self.member_RP.shape[1])


@dataclass(frozen=True, kw_only=True)
class Affinity:
    """Absorption among the tokens of one (small) level; several may absorb the same token.

    Attributes:
        neighbor_index_BUT: long, the most similar tokens of each token of the level. Entries that
            do not absorb may repeat one that does.
        absorbs_BUT: bool, True if that neighbor absorbs the token.
        absorbed_BUV: float32, 1 where the column's token absorbs the row's.
        start: the level's first token.
        rule: as for windows; "mean" divides by 1 + the number of absorbed tokens.
    """

    neighbor_index_BUT: Tensor
    absorbs_BUT: Tensor
    absorbed_BUV: Tensor
    start: int
    rule: MergeRule = "mean"

    @property
    def absorbed_BVU(self) -> Tensor:
        """Float32 [B, U, U], 1 if the row's token absorbs the column's."""
        return self.absorbed_BUV.transpose(1, 2)

    def merge_level(self, x_BNC: Tensor) -> Tensor:
        """Return the level's tokens with what they absorb, [B, U, C]."""
        level_BUC = x_BNC[:, self.start : self.start + self.neighbor_index_BUT.shape[1]]
        if self.rule == "retain":
            return level_BUC
        if self.rule == "max":
            return self._maximum(level_BUC)
        with without_autocast(x_BNC.device):
            absorbed_BVU = self.absorbed_BVU.to(x_BNC.dtype)
            merged_BUC = level_BUC + torch.bmm(absorbed_BVU, level_BUC)
            if self.rule == "mean":
                merged_BUC = merged_BUC / (1 + absorbed_BVU.sum(dim=2, keepdim=True))
        return merged_BUC

    def _maximum(self, level_BUC: Tensor) -> Tensor:
        neighbors = self.neighbor_index_BUT.shape[2]
        source_BEC = level_BUC.repeat_interleave(neighbors, dim=1)
        skipped_BE1 = ~self.absorbs_BUT.flatten(1)[..., None]
        index_BEC = self.neighbor_index_BUT.flatten(1)[..., None].expand_as(source_BEC)
        return level_BUC.scatter_reduce(
            1, index_BEC, source_BEC.masked_fill(skipped_BE1, float("-inf")), "amax"
        )


@dataclass(frozen=True, kw_only=True)
class AffinityGroup(Affinity):
    """Tokens of one (small) level that absorb others.

    Attributes:
        slot_R: long, the flat reduced token of each absorbing token.
        token_R: long, the absorbing tokens, flat over this level: ``image * U + token of the
            level``.
    """

    slot_R: Tensor
    token_R: Tensor

    def merge(self, x_BNC: Tensor) -> Tensor:
        """Return the merged tokens [R, C]."""
        return self.merge_level(x_BNC).flatten(0, 1).index_select(0, self.token_R)

    def add_weights(self, weights_KN: Tensor) -> None:
        """Write a row for each absorbing token: itself and what it absorbs."""
        if self.rule == "retain":
            return
        batch, level_tokens, _ = self.neighbor_index_BUT.shape
        tokens = weights_KN.shape[1] // max(batch, 1)
        itself = torch.eye(level_tokens, device=weights_KN.device)
        rows_BVU = self.absorbed_BVU + itself
        if self.rule != "sum":
            rows_BVU = rows_BVU / rows_BVU.sum(dim=2, keepdim=True)
        rows_RU = rows_BVU.flatten(0, 1)[self.token_R].to(weights_KN.dtype)
        first_R1 = (self.token_R // level_tokens * tokens + self.start)[:, None]
        columns_RU = first_R1 + torch.arange(level_tokens, device=weights_KN.device)
        weights_KN[self.slot_R[:, None], columns_RU] = rows_RU

    def add_sizes(self, size_K: Tensor) -> None:
        """Write 1 + the number of absorbed tokens."""
        absorbed_V = self.absorbed_BVU.sum(dim=2).flatten()
        size_K[self.slot_R] = 1 + absorbed_V[self.token_R]


Groups = Sequence[WindowGroup | AffinityGroup]


class Merge(AnchoredMap):
    """Most tokens stay single, groups of tokens become one (Dynamic DETR).

    W is never made: single tokens are gathered, and only groups are computed.

    Args:
        index_BK: long, the token whose position each reduced token has; an image's indices are
            distinct.
        valid_BK: bool, False for the padding entries of images with fewer reduced tokens; None if
            there are none.
        groups: members of the merged tokens, or a function that returns them when they are needed.
        num_all: number of tokens N before reduction.
        broadcast: write a window's result to all its members; otherwise to its anchor alone, and
            the others keep what they had.
    """

    def __init__(
        self,
        *,
        index_BK: Tensor,
        valid_BK: Tensor | None,
        groups: Groups | Callable[[], Groups],
        num_all: int,
        broadcast: bool = False,
    ) -> None:
        super().__init__(index_BK, valid_BK)
        self._groups = groups
        self.num_all = num_all
        self.broadcast = broadcast

    @cached_property
    def groups(self) -> tuple[WindowGroup | AffinityGroup, ...]:
        """Members of the merged tokens, without groups that have none."""
        groups = self._groups if isinstance(self._groups, Sequence) else self._groups()
        return tuple(group for group in groups if group.slot_R.shape[0] > 0)

    @property
    def windows(self) -> tuple[WindowGroup, ...]:
        """The groups that are windows."""
        return tuple(group for group in self.groups if isinstance(group, WindowGroup))

    @property
    def centered_windows(self) -> tuple[WindowGroup, ...]:
        """The windows that stand at the mean of their members' places."""
        return tuple(group for group in self.windows if group.locate == "mean")

    def reduce(self, x_BNC: Tensor) -> Tensor:
        """Return single tokens unchanged and groups merged, [B, K, C]."""
        tokens_BKC = take_rows(x_BNC, self._index_BK)
        return _replace(
            tokens_BKC,
            [group.slot_R for group in self.groups],
            [group.merge(x_BNC) for group in self.groups],
        )

    def restore(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return ``base_BNC`` with the anchors (when broadcasting, all members) replaced."""
        return self._broadcast(y_BKC, super().restore(y_BKC, base_BNC))

    def restore_onto(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return the same as :meth:`restore`, with rows replaced in place."""
        return self._broadcast(y_BKC, self._put_anchors(y_BKC, base_BNC, onto=True))

    def _broadcast(self, y_BKC: Tensor, restored_BNC: Tensor) -> Tensor:
        """Return the tokens with windows' results at all their members, if they are broadcast."""
        if not self.broadcast:
            return restored_BNC
        flat_KC = y_BKC.flatten(0, 1)
        others = [group.member_RP[:, :-1] for group in self.windows]
        slots = [
            group.slot_R.repeat_interleave(group.member_RP.shape[1] - 1) for group in self.windows
        ]
        return _replace(
            restored_BNC,
            [other_RP.flatten() for other_RP in others],
            [flat_KC.index_select(0, slot_E) for slot_E in slots],
        )

    def select(self, x_BN: Tensor) -> Tensor:
        """Return attributes of the anchors, or means over windows with ``locate="mean"``."""
        selected_BK = super().select(x_BN)
        groups = self.centered_windows
        if not groups:
            return selected_BK
        rows = [group.merge(x_BN.flatten(2), rule="mean") for group in groups]
        flat_BKC = _replace(selected_BK.flatten(2), [group.slot_R for group in groups], rows)
        return flat_BKC.view_as(selected_BK)

    def weights_BKN(self) -> Tensor:
        """Return W as a dense float32 matrix [B, K, N], for statistics; padding rows are 0."""
        batch, slots = self._index_BK.shape
        weights = torch.zeros(batch * slots, batch * self.num_all, device=self._index_BK.device)
        image_B1 = torch.arange(batch, device=weights.device)[:, None]
        row = torch.arange(batch * slots, device=weights.device)
        weights[row, (self._index_BK + image_B1 * self.num_all).flatten()] = 1.0
        for group in self.groups:
            group.add_weights(weights)
        if self._valid_BK is not None:
            weights[~self._valid_BK.flatten()] = 0.0
        blocks = weights.view(batch, slots, batch, self.num_all)
        return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()

    def size_BK(self) -> Tensor:
        """Return the number of tokens merged into each reduced token, float32 [B, K].

        It is 0 for padding.
        """
        size_K = torch.ones(self._index_BK.numel(), device=self._index_BK.device)
        for group in self.groups:
            group.add_sizes(size_K)
        size_BK = size_K.view_as(self._index_BK)
        return size_BK if self._valid_BK is None else size_BK.masked_fill(~self._valid_BK, 0.0)

    def cluster_BN(self) -> Tensor:
        """Return the reduced token that represents each token, long [B, N].

        It is -1 if none or several do.
        """
        batch, slots = self._index_BK.shape
        slot_BK = torch.arange(slots, device=self._index_BK.device).expand(batch, -1)
        if self._valid_BK is not None:
            slot_BK = slot_BK.masked_fill(~self._valid_BK, -1)
        cluster_BN = slot_BK.new_full((batch, self.num_all), -1).scatter(1, self._index_BK, slot_BK)
        flat_N = cluster_BN.flatten()
        for group in self.windows:
            flat_N[group.member_RP] = (group.slot_R % slots)[:, None]
        return flat_N.view_as(cluster_BN)


def _replace(x_BNC: Tensor, indices: list[Tensor], rows: list[Tensor]) -> Tensor:
    """Replace some flat rows of a contiguous tensor in place; return it."""
    if indices:
        flat = x_BNC.flatten(0, 1)
        flat.index_copy_(0, torch.cat(indices), torch.cat(rows).to(flat.dtype))
    return x_BNC
