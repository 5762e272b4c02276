"""Interface to the blocks of a family of windowed backbones.

Shapes: G windows of the whole batch, T tokens of a window, C channel, M head, D head width.
"""

from typing import Protocol

from torch import Tensor, nn

__all__ = ["WindowedBlocks"]


class WindowedBlocks(Protocol):
    """Interface to the blocks of a family of windowed backbones."""

    def window(self, block: nn.Module) -> int:
        """Return the side of the block's windows."""

    def is_shifted(self, block: nn.Module) -> bool:
        """Return True if the block's windows are shifted."""

    def is_fast(self, block: nn.Module, x: Tensor) -> bool:
        """Return True if :func:`tokendetr.layers.cpu.swin.add_block` may run the block."""

    def norm(self, block: nn.Module) -> nn.Module:
        """Return the norm before the attention."""

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """Return the feed-forward network's output for tokens [..., C], from before its norm."""

    def heads(self, block: nn.Module, normed_GTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [G, M, T, D]."""

    def scale(self, block: nn.Module) -> float:
        """Return the factor of the logits."""

    def bias_table(self, block: nn.Module) -> Tensor:
        """Return the bias [M, 2h - 1, 2w - 1] of (query - key) offsets in windows of h x w."""

    def dropout(self, block: nn.Module) -> float:
        """Return the probability of dropping an attention weight."""

    def project(self, block: nn.Module, out_GTC: Tensor) -> Tensor:
        """Return the attention's output projected."""
