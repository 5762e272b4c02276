"""Restoring all tokens from the reduced ones.

Shapes: B sequence, N token, K reduced token, C channel, R row, E = 2 C.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from token_transforming.settings import Reduction
from tokendetr.tokens import Mix, Recovery, partition, take_rows

MAPS = "token_recovery"
"""Name of the maps in a block that reduces."""


class RecoveryMaps(nn.Module):
    """Affine maps that bring restored tokens nearer to what they would be without a reduction.

    A token x whose reduced token has changed by d since becomes x + d + A x + B d + b, with one map
    for tokens that a reduced token stands in the place of, and one for the others. New maps are
    zeros: x + d.

    Args:
        channels: C of the tokens.
        like: tensor whose type and device the maps have.

    Source: not in the paper; the affine bypass of docs/bypass.md, for backbones.
    """

    def __init__(self, channels: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(like.detach().new_zeros(2, channels, 2 * channels))
        self.bias = nn.Parameter(like.detach().new_zeros(2, channels))

    def forward(self, before_BNC: Tensor, change_BNC: Tensor, kept_BN: Tensor, kept: int) -> Tensor:
        """Return restored tokens [B, N, C].

        Args:
            before_BNC: the tokens before the reduction.
            change_BNC: how much their reduced tokens have changed since.
            kept_BN: bool, whether a reduced token stands in the token's place.
            kept: how many do in every sequence; -1 where their number differs.
        """
        input_BNE = torch.cat([before_BNC, change_BNC], dim=-1)
        if kept < 0:
            other_BNC, own_BNC = self._map(1, input_BNE), self._map(0, input_BNE)
            return before_BNC + change_BNC + torch.where(kept_BN[..., None], own_BNC, other_BNC)
        order_BN, slot_BN = partition(kept_BN)
        sorted_BNE = take_rows(input_BNE, order_BN)
        parts = self._map(0, sorted_BNE[:, :kept]), self._map(1, sorted_BNE[:, kept:])
        return before_BNC + change_BNC + take_rows(torch.cat(parts, dim=1), slot_BN)

    def _map(self, kind: int, input_BNE: Tensor) -> Tensor:
        return F.linear(input_BNE, self.weight[kind], self.bias[kind])


def add_maps(block: nn.Module, norm: nn.Module, how: Reduction | None) -> None:
    """Give a block the maps that its reduction is undone with, if it is to be undone so."""
    if how is not None and how.recovery == "affine":
        like: Tensor = norm.weight  # type: ignore[assignment]
        block.add_module(MAPS, RecoveryMaps(len(like), like).train(block.training))


def remove_maps(block: object) -> None:
    """Take a block's maps away again."""
    if maps_of(block) is not None:
        delattr(block, MAPS)


def maps_of(block: object) -> RecoveryMaps | None:
    """Return the maps of a block; None if it has none."""
    maps = getattr(block, MAPS, None)
    return maps if isinstance(maps, RecoveryMaps) else None


@dataclass(frozen=True)
class Undo:
    """How one reduction is undone.

    Attributes:
        recovery: the reduced tokens that each token is restored from.
        before_BNC: the tokens before the reduction, to which the change of their reduced tokens is
            added; None: tokens become what their reduced tokens are.
        after_BKC: the tokens that the reduction made of them; None likewise.
        maps: what is added to that; None: nothing.
        kept_BN: bool, whether a reduced token stands in the token's place; None without maps.
        kept: how many do in every sequence; -1 where their number differs.

    Source: Token Transforming, arXiv 2506.05709, equations 9 and 10, for ``before_BNC`` None.
    Differs: with ``before_BNC`` a token keeps its own content: X + (Y'[I] - Y[I]), where Y' is what
        the following blocks made of Y. No multiply-add is added.
    """

    recovery: Recovery
    before_BNC: Tensor | None = None
    after_BKC: Tensor | None = None
    maps: RecoveryMaps | None = None
    kept_BN: Tensor | None = None
    kept: int = -1

    @classmethod
    def of(
        cls,
        token_map: Mix,
        x_BNC: Tensor,
        y_BKC: Tensor,
        how: Reduction,
        maps: RecoveryMaps | None = None,
    ) -> "Undo":
        """Return how a reduction from ``x_BNC`` to ``y_BKC`` is undone.

        Raises:
            ValueError: the map was made without a recovery.
        """
        if token_map.recovery is None:
            raise ValueError("this map does not know how to restore its tokens")
        if how.recovery == "paper":
            return cls(token_map.recovery)
        if maps is None:
            return cls(token_map.recovery, x_BNC, y_BKC)
        real_BK, kept = token_map.valid_BK, token_map.num_tokens
        if real_BK is None:
            real_BK = torch.ones_like(token_map.anchor_BK, dtype=torch.bool)
        else:
            kept = -1
        kept_BN = torch.zeros(x_BNC.shape[:2], dtype=torch.bool, device=x_BNC.device)
        kept_BN = kept_BN.scatter(1, token_map.anchor_BK, real_BK)
        return cls(token_map.recovery, x_BNC, y_BKC, maps, kept_BN, kept)

    def restore(self, y_BKC: Tensor, *, view: bool = False) -> Tensor:
        """Return all tokens [B, N, C] from the reduced ones, as they are by now.

        Args:
            y_BKC: the reduced tokens.
            view: leave the maps out, which are fitted for the last restoration.
        """
        if self.before_BNC is None or self.after_BKC is None:
            return self.recovery.restore(y_BKC)
        change_BNC = self.recovery.restore(y_BKC - self.after_BKC)
        if self.maps is None or self.kept_BN is None or view:
            return self.before_BNC + change_BNC
        restored_BNC: Tensor = self.maps(self.before_BNC, change_BNC, self.kept_BN, self.kept)
        return restored_BNC
