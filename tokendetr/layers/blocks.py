"""Work that treats every token alone, block by block: in calls without gradients on CPUs.

What one step of a block leaves for the next takes memory that the block before it used, instead of
fresh memory, which the system clears page by page. Larger blocks leave the fastest cache, but cost
fewer calls, and threads wait for each other at the end of each.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tokendetr.compat.torch_private import current_dispatch_mode

ROWS_AT_ONCE = 2048
"""Tokens per block in float32 (8 MiB at width 1024), twice as many in bfloat16."""


def blocks_pay(x: Tensor, *, training: bool) -> bool:
    """Return True if a tensor's tokens may be worked on block by block, and that saves time."""
    return (
        x.device.type == "cpu"
        and not training
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and current_dispatch_mode() is None  # operation counters see every module
    )


def _rows_at_once(x: Tensor) -> int:
    low = torch.is_autocast_enabled("cpu") or x.element_size() == 2
    return 2 * ROWS_AT_ONCE if low else ROWS_AT_ONCE


def by_blocks(
    function: Callable[..., Tensor], *inputs: Tensor, into: Tensor | None = None
) -> Tensor:
    """Apply a function that treats every row alone to one block of rows after the other.

    Args:
        function: maps blocks [R, ...] of the inputs to results [R, ...].
        inputs: [N, ...] each.
        into: a contiguous tensor, possibly one of the inputs, which takes the result if it has the
            result's shape and dtype.

    Returns:
        The results [N, ...].
    """
    total, step = len(inputs[0]), _rows_at_once(inputs[0])
    if total <= step:
        return function(*inputs)
    done = function(*(each[:step] for each in inputs))
    shape = (total, *done.shape[1:])
    if into is not None and into.shape == shape and into.dtype == done.dtype:
        result = into
    else:
        result = done.new_empty(shape)
    result[:step] = done
    for start in range(step, total, step):
        rows = slice(start, start + step)
        result[rows] = function(*(each[rows] for each in inputs))
    return result
