"""What the blocks of one forward pass hand on besides the tokens: sizes and how to restore.

The first block opens a ledger, the last one closes it. It belongs to the current thread, lives no
longer than the pass, and has a place for every block, so a block that is recomputed for the
backward pass finds what it found the first time. Nothing is kept on a module.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from token_transforming.recovery import Undo
from tokendetr.encoder.forward_context import current_pass, enter_part, leave_part


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

    def restore(self, x_BNC: Tensor, prefix: int, *, view: bool = False) -> Tensor:
        """Return all tokens; the first ``prefix`` ones stay as they are.

        Args:
            x_BNC: the reduced tokens.
            prefix: number of class and register tokens.
            view: of a block in between, which fitted maps are not made for.
        """
        if not self.undo:
            return x_BNC
        patches_BNC = x_BNC[:, prefix:]
        for undo in reversed(self.undo):
            patches_BNC = undo.restore(patches_BNC, view=view)
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


class _CompiledPass(threading.local):
    """The ledger of the pass of compiled code in this thread.

    The compiler follows the attributes of a ``threading.local``, but no context variable.
    """

    ledger: Ledger | None = None


_compiled = _CompiledPass()


@contextmanager
def all_outputs_read() -> Iterator[None]:
    """Let every block of the pass inside the ``with`` block put out all tokens."""
    enter_part().ledger = Ledger(views=True)
    try:
        yield
    finally:
        close_ledger()


def open_ledger(index: int) -> Ledger:
    """Return the ledger for a block: a new one for the first, the current one for the others.

    Raises:
        RuntimeError: if no pass is under way.
    """
    if torch.compiler.is_compiling():
        if index == 0:
            _compiled.ledger = Ledger({0: TokenState()})
        ledger = _compiled.ledger
    else:
        if index == 0:
            context = enter_part()
            asked = isinstance(context.ledger, Ledger) and not context.ledger.entering
            context.ledger = Ledger({0: TokenState()}, asked and context.ledger.views)
        ledger = current_pass().ledger or _compiled.ledger
    if ledger is None or index not in ledger.entering:
        raise RuntimeError(
            f"block {index} of a transformed model runs outside of a forward pass of all blocks in "
            "order. Activation checkpointing around blocks is supported for Hugging Face models "
            "and Swin alone: turn it off, or restore(model) first"
        )
    return ledger


def close_ledger() -> None:
    """End the pass of the blocks; called by the last one."""
    _compiled.ledger = None
    if not torch.compiler.is_compiling():
        current_pass().ledger = None
        leave_part()
