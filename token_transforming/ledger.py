"""State that blocks pass on besides the tokens: sizes, and how to restore all tokens.

The first block opens a ledger, the last one closes it. It belongs to the current thread and pass,
and has an entry for every block, so that a block that is recomputed in the backward pass finds the
same state. Modules keep no state.
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
    """State of the tokens that enter a block.

    Attributes:
        size_BN: number of original tokens in each (without class and register tokens); None: 1, or
            not needed.
        undo: inverses of the reductions so far, in order.
        x_BNC: the reduced tokens, if the block before returned a restored view of them.
        grid: rows and columns of all tokens, if blocks pass on maps.
        position_BN2: long, row and column of each token, if blocks pass on maps; None: row by row.
    """

    size_BN: Tensor | None = None
    undo: tuple[Undo, ...] = ()
    x_BNC: Tensor | None = None
    grid: tuple[int, int] | None = None
    position_BN2: Tensor | None = None

    def restore(self, x_BNC: Tensor, prefix: int, *, view: bool = False) -> Tensor:
        """Return all tokens; the first ``prefix`` ones are unchanged.

        Args:
            x_BNC: the reduced tokens.
            prefix: number of class and register tokens.
            view: restore an intermediate view, without recovery maps, which are fitted for the last
                restoration.
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
        entering: the state that enters each block.
        views: every block's output is read as a map of all tokens.
    """

    entering: dict[int, TokenState] = field(default_factory=dict)
    views: bool = False


class _CompiledPass(threading.local):
    """The ledger of compiled code's pass in this thread.

    torch.compile can trace attributes of a ``threading.local``, but no context variable.
    """

    ledger: Ledger | None = None


_compiled = _CompiledPass()


@contextmanager
def all_outputs_read() -> Iterator[None]:
    """Make every block return all tokens in the pass inside the ``with`` block."""
    enter_part().ledger = Ledger(views=True)
    try:
        yield
    finally:
        close_ledger()


def open_ledger(index: int) -> Ledger:
    """Return the ledger for a block: a new one for the first block, else the current one.

    Raises:
        RuntimeError: no pass is running.
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
    """End the pass; called by the last block."""
    _compiled.ledger = None
    if not torch.compiler.is_compiling():
        current_pass().ledger = None
        leave_part()
