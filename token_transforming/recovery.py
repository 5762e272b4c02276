"""Restore all tokens from the reduced ones.

Shapes: B sequence, N token, K reduced token, C channel, R row, E = 2 C.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from token_transforming.settings import Reduction
from tokendetr.tokens import Mix, Recovery, chosen_tokens, partition, take_rows

MAPS = "token_recovery"
"""Name of the maps' module in a reducing block."""


class RecoveryMaps(nn.Module):
    """Affine maps that bring restored tokens closer to those of a model without the reduction.

    A token x, whose reduced token has changed by d since the reduction, becomes
    x + d + A x + B d + b. Tokens that are a reduced token's anchor have one map, the others
    another. New maps are zeros: x + d.

    Args:
        channels: C of the tokens.
        like: tensor that gives dtype and device.

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
            change_BNC: change of their reduced tokens since then.
            kept_BN: bool, True for anchors of reduced tokens.
            kept: number of anchors, if every sequence has the same, else -1.
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


def add_maps(block: nn.Module, norm: nn.Module, reduction: Reduction | None) -> None:
    """Add recovery maps to a block whose reduction needs them."""
    if reduction is not None and reduction.recovery == "affine":
        like: Tensor = norm.weight  # type: ignore[assignment]
        block.add_module(MAPS, RecoveryMaps(len(like), like).train(block.training))


def remove_maps(block: object) -> None:
    """Remove a block's recovery maps."""
    if maps_of(block) is not None:
        delattr(block, MAPS)


def maps_of(block: object) -> RecoveryMaps | None:
    """Return a block's recovery maps; None if it has none."""
    maps = getattr(block, MAPS, None)
    return maps if isinstance(maps, RecoveryMaps) else None


@dataclass(frozen=True)
class Undo:
    """Inverse of one reduction.

    Attributes:
        recovery: the reduced tokens that each token is restored from.
        before_BNC: the tokens before the reduction, to which the change of their reduced tokens is
            added; None: a token becomes its reduced token.
        after_BKC: the reduced tokens right after the reduction; None if ``before_BNC`` is.
        maps: recovery maps; None: none.
        kept_BN: bool, True for anchors of reduced tokens; None without maps.
        kept: number of anchors, if every sequence has the same, else -1.

    Source: Token Transforming, arXiv 2506.05709, equations 9 and 10, for ``before_BNC`` None.
    Differs: with ``before_BNC`` a token keeps its own content: X + (Y'[I] - Y[I]), where Y' is what
        the following blocks made of Y. No multiply-add is added. With method "transforming", I is
        then the reduced token of the highest similarity, not of the least distance.
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
        reduction: Reduction,
        maps: RecoveryMaps | None = None,
    ) -> "Undo":
        """Return the inverse of a reduction from ``x_BNC`` to ``y_BKC``.

        Raises:
            ValueError: the map was made without a recovery.
        """
        if token_map.recovery is None:
            raise ValueError("this token map has no recovery, so its tokens cannot be restored")
        if reduction.recovery == "paper":
            return cls(token_map.recovery)
        if maps is None:
            return cls(token_map.recovery, x_BNC, y_BKC)
        kept_BN = chosen_tokens(token_map.anchor_BK, token_map.valid_BK, x_BNC.shape[1])
        kept = token_map.num_tokens if token_map.valid_BK is None else -1
        return cls(token_map.recovery, x_BNC, y_BKC, maps, kept_BN, kept)

    def restore(self, y_BKC: Tensor, *, view: bool = False) -> Tensor:
        """Return all tokens [B, N, C], restored from the current reduced ones.

        Args:
            y_BKC: the reduced tokens.
            view: do not apply the recovery maps, which are fitted for the last restoration.
        """
        if self.before_BNC is None or self.after_BKC is None:
            return self.recovery.restore(y_BKC)
        change_BNC = self.recovery.restore(y_BKC - self.after_BKC)
        if self.maps is None or self.kept_BN is None or view:
            return self.before_BNC + change_BNC
        restored_BNC: Tensor = self.maps(self.before_BNC, change_BNC, self.kept_BN, self.kept)
        return restored_BNC
