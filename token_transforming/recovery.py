"""Restoring all tokens from the reduced ones.

Shapes: B sequence, N token, K reduced token, C channel.
"""

from dataclasses import dataclass

from torch import Tensor

from token_transforming.settings import Reduction
from tokendetr.tokens import Mix, Recovery


@dataclass(frozen=True)
class Undo:
    """How one reduction is undone.

    Attributes:
        recovery: the reduced tokens that each token is restored from.
        before_BNC: the tokens before the reduction, to which the change of their reduced tokens is
            added; None: tokens become what their reduced tokens are.
        after_BKC: the tokens that the reduction made of them; None likewise.

    Source: Token Transforming, arXiv 2506.05709, equations 9 and 10, for ``before_BNC`` None.
    Differs: with ``before_BNC`` a token keeps its own content: X + (Y'[I] - Y[I]), where Y' is what
        the following blocks made of Y. No multiply-add is added.
    """

    recovery: Recovery
    before_BNC: Tensor | None = None
    after_BKC: Tensor | None = None

    @classmethod
    def of(cls, token_map: Mix, x_BNC: Tensor, y_BKC: Tensor, how: Reduction) -> "Undo":
        """Return how a reduction from ``x_BNC`` to ``y_BKC`` is undone.

        Raises:
            ValueError: the map was made without a recovery.
        """
        if token_map.recovery is None:
            raise ValueError("this map does not know how to restore its tokens")
        if how.recovery == "residual":
            return cls(token_map.recovery, x_BNC, y_BKC)
        return cls(token_map.recovery)

    def restore(self, y_BKC: Tensor) -> Tensor:
        """Return all tokens [B, N, C] from the reduced ones, as they are by now."""
        if self.before_BNC is None or self.after_BKC is None:
            return self.recovery.restore(y_BKC)
        return self.before_BNC + self.recovery.restore(y_BKC - self.after_BKC)
