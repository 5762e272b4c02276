"""Stochastic depth."""

from torch import Tensor, nn

__all__ = ["DropPath", "drop_path"]


def drop_path(x: Tensor, drop_prob: float = 0.0, training: bool = False) -> Tensor:
    """Zero whole samples at random and scale the others so that the mean stays.

    Args:
        x: [B, ...].
        drop_prob: in [0, 1).
        training: nothing is dropped when False.
    """
    if drop_prob == 0.0 or not training:
        return x
    keep_prob = 1.0 - drop_prob
    kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
    if keep_prob > 0.0:
        kept.div_(keep_prob)
    return x * kept


class DropPath(nn.Module):
    """Module form of :func:`drop_path`, for the main path of residual blocks."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of [B, ...] while training."""
        return drop_path(x, self.drop_prob, self.training)

    def extra_repr(self) -> str:
        """Show the probability when printed."""
        return f"drop_prob={self.drop_prob:0.3f}"
