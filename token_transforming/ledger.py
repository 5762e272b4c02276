"""What the blocks of one forward pass hand on besides the tokens: sizes and how to restore.

The first block opens a ledger, the last one closes it. It belongs to the current thread, lives no
longer than the pass, and has a place for every block, so a block that is recomputed for the
backward pass finds what it found the first time. Nothing is kept on a module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from token_transforming.recovery import Undo


@dataclass(frozen=True)
class TokenState:
    """What is known about the tokens that enter a block.

    Attributes:
        size_BN: how many original tokens each one stands for (without class and register tokens);
            None: one, or it does not matter.
        undo: how to undo the reductions so far, first one first.
        x_BNC: the tokens themselves, where the block before put out a restored view of them.
        grid: rows and columns of all tokens, where blocks pass maps on.
        position_BN2: long, row and column of each token, where blocks pass maps on; None: as they
            lie on the map.
    """

    size_BN: Tensor | None = None
    undo: tuple[Undo, ...] = ()
    x_BNC: Tensor | None = None
    grid: tuple[int, int] | None = None
    position_BN2: Tensor | None = None

    def restore(self, x_BNC: Tensor, prefix: int) -> Tensor:
        """Return all tokens; the first ``prefix`` ones stay as they are."""
        if not self.undo:
            return x_BNC
        patches_BNC = x_BNC[:, prefix:]
        for undo in reversed(self.undo):
            patches_BNC = undo.restore(patches_BNC)
        return torch.cat([x_BNC[:, :prefix], patches_BNC], dim=1)


@dataclass
class Ledger:
    """The states of one forward pass.

    Attributes:
        entering: by the block that they enter.
        views: whether every block's output is read as a map of all tokens.
    """

    entering: dict[int, TokenState] = field(default_factory=dict)
    views: bool = False


class _Shared:
    """Where compiled code finds the ledger: the compiler cannot follow context variables."""

    ledger: Ledger | None = None


_VIEWS: ContextVar[bool] = ContextVar("token_transforming_views", default=False)
_CURRENT: ContextVar[Ledger | None] = ContextVar("token_transforming_ledger", default=None)
_SHARED = _Shared()


@contextmanager
def all_outputs_read() -> Iterator[None]:
    """Let every block of passes inside the ``with`` block put out all tokens."""
    token = _VIEWS.set(True)
    try:
        yield
    finally:
        _VIEWS.reset(token)


def set_ledger(ledger: Ledger | None) -> None:
    """Make a ledger the current one; None closes it."""
    _SHARED.ledger = ledger
    if not torch.compiler.is_compiling():
        _CURRENT.set(ledger)


def open_ledger(index: int) -> Ledger:
    """Return the ledger for a block: a new one for the first, the current one for the others.

    Raises:
        RuntimeError: where no pass is under way.
    """
    if index == 0:
        views = False if torch.compiler.is_compiling() else _VIEWS.get()
        ledger = Ledger({0: TokenState()}, views)
        set_ledger(ledger)
        return ledger
    current = _SHARED.ledger if torch.compiler.is_compiling() else _CURRENT.get() or _SHARED.ledger
    if current is None or index not in current.entering:
        raise RuntimeError(
            f"block {index} of a transformed model runs outside of a forward pass of all blocks in "
            "order. Activation checkpointing around blocks is supported for Hugging Face models "
            "and Swin alone: turn it off, or restore(model) first"
        )
    return current
