"""Merge the windows and tokens that a plan chose, by one call of a kernel if possible.

Shapes: B image, N all tokens, K reduced tokens, R groups, P members of a window, A absorbing
tokens, E members of all windows, U tokens of the coarsest level, T neighbors, V absorbed tokens, C
channel.
"""

from typing import Literal

import torch
from torch import Tensor

from tokendetr.ops.token_merging import merge_tokens_kernel, merges_by_kernel
from tokendetr.tokens.maps.merge import AffinityGroup, Groups, Merge, MergeRule, WindowGroup
from tokendetr.tokens.merge_plan import MergePlan


class PlannedMerge(Merge):
    """The merge of a plan: its windows, and the tokens of the coarsest level that others absorb.

    The groups say what merges. The kernel computes the same from the plan itself; groups are only
    made if something else reads them.

    Args:
        plan: the choices.
        absorbs: let the coarsest level's important tokens absorb the others that the plan matched.
        valid_BK: bool, False for padding entries; None if there are none.
        num_all: number of tokens N before reduction.
        level_start: the coarsest level's first token.
        rule: how the tokens of a group become one.
        locate: where windows' tokens stand, see :class:`tokendetr.tokens.WindowGroup`.
        broadcast: see :class:`tokendetr.tokens.Merge`.
    """

    def __init__(
        self,
        plan: MergePlan,
        *,
        absorbs: bool,
        valid_BK: Tensor | None,
        num_all: int,
        level_start: int,
        rule: MergeRule,
        locate: Literal["anchor", "mean"],
        broadcast: bool,
    ) -> None:
        super().__init__(
            index_BK=plan.order.index_BK,
            valid_BK=valid_BK,
            groups=self._planned_groups,
            num_all=num_all,
            broadcast=broadcast,
        )
        self._plan = plan
        self._match = plan.match if absorbs else None
        self._level_start = level_start
        self._rule: MergeRule = rule
        self._locate: Literal["anchor", "mean"] = locate

    def _planned_groups(self) -> Groups:
        order, windows, match = self._plan.order, self._plan.windows, self._match
        groups: list[WindowGroup | AffinityGroup] = []
        if match is not None:
            groups.append(
                AffinityGroup(
                    slot_R=order.absorber_slot_A,
                    token_R=order.absorber_A,
                    neighbor_index_BUT=match.neighbor_index_BNT,
                    absorbs_BUT=match.absorbs_BNT,
                    absorbed_BUV=match.absorbed_BNN,
                    start=self._level_start,
                    rule=self._rule,
                )
            )
        members = [] if windows is None else windows.by_size()
        slots = order.window_slot_R.split([len(member_RP) for member_RP in members])
        groups += (
            WindowGroup(slot_R=slot_R, member_RP=member_RP, rule=self._rule, locate=self._locate)
            for slot_R, member_RP in zip(slots, members, strict=True)
        )
        return groups

    @property
    def centered_windows(self) -> tuple[WindowGroup, ...]:
        """The windows that stand at the mean of their members' places."""
        return () if self._locate == "anchor" else super().centered_windows

    def reduce(self, x_BNC: Tensor) -> Tensor:
        """Return single tokens unchanged and groups merged, [B, K, C]."""
        if (
            x_BNC.dtype != torch.float32
            or self._rule not in ("mean", "sum")
            or (x_BNC.requires_grad and torch.is_grad_enabled())
            or not merges_by_kernel(x_BNC)
        ):
            return super().reduce(x_BNC)
        order, windows, match = self._plan.order, self._plan.windows, self._match
        return merge_tokens_kernel(
            x_BNC,
            order.index_BK,
            member_E=order.window_slot_R[:0] if windows is None else windows.member_E,
            sizes=() if windows is None else windows.sizes,
            window_slot_R=order.window_slot_R,
            neighbor_BUT=None if match is None else match.neighbor_index_BNT,
            absorbs_BUT=None if match is None else match.absorbs_BNT,
            absorber_A=order.absorber_A,
            absorber_slot_A=order.absorber_slot_A,
            start=self._level_start,
            mean=self._rule == "mean",
        )
