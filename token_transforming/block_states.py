"""State that blocks pass on besides the tokens: sizes, and how to restore all tokens.

The first block makes :class:`BlockStates`, and the last one drops them. They belong to the current
thread and pass, with an entry for every block, so that a block that is recomputed in the backward
pass finds the same state. Modules keep no state.
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
class BlockStates:
    """The states of one forward pass.

    Attributes:
        entering: the state that enters each block.
        views: every block's output is read as a map of all tokens.
    """

    entering: dict[int, TokenState] = field(default_factory=dict)
    views: bool = False


class _CompiledPass(threading.local):
    """The states of compiled code's pass in this thread.

    torch.compile can trace attributes of a ``threading.local``, but no context variable.
    """

    states: BlockStates | None = None


_compiled = _CompiledPass()


@contextmanager
def all_outputs_read() -> Iterator[None]:
    """Make every block return all tokens in the pass inside the ``with`` block."""
    enter_part().block_states = BlockStates(views=True)
    try:
        yield
    finally:
        end_pass()


def states_for_block(index: int) -> BlockStates:
    """Return the pass's states for a block: new ones for the first block, else the current ones.

    Raises:
        RuntimeError: no pass is running.
    """
    if torch.compiler.is_compiling():
        if index == 0:
            _compiled.states = BlockStates({0: TokenState()})
        states = _compiled.states
    else:
        if index == 0:
            context = enter_part()
            before = context.block_states
            views = isinstance(before, BlockStates) and not before.entering and before.views
            context.block_states = BlockStates({0: TokenState()}, views)
        states = current_pass().block_states or _compiled.states
    if states is None or index not in states.entering:
        raise RuntimeError(
            f"block {index} of a transformed model runs outside of a forward pass of all blocks in "
            "order. Activation checkpointing around blocks is supported for Hugging Face models "
            "and Swin only: turn it off, or restore(model) first"
        )
    return states


def end_pass() -> None:
    """End the pass; called by the last block."""
    _compiled.states = None
    if not torch.compiler.is_compiling():
        current_pass().block_states = None
        leave_part()
