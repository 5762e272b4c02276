"""Tensors that follow from sizes alone, kept from one batch to the next.

Making them takes many small operators, which on small images cost as much as the layers do.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

from tokendetr.compat.torch_private import current_dispatch_mode

Made = TypeVar("Made")

MOST_BYTES = 1 << 23
"""Bytes of tensors that one function keeps. Those of large batches are not worth keeping: a result
of more than an eighth of it is made anew each time."""


def bytes_of(made: object) -> int:
    """Return the bytes of a tensor, or of the tensors among an object's attributes."""
    if isinstance(made, Tensor):
        return made.nbytes
    return sum(each.nbytes for each in vars(made).values() if isinstance(each, Tensor))


def kept_tensors(
    make: Callable[..., Made], measure: Callable[[Made], int] = bytes_of
) -> Callable[..., Made]:
    """Decorate a function so that it keeps its latest results, which nobody may write to.

    Nothing is kept, or taken from what was, where operators are traced, compiled or counted.

    Args:
        make: takes hashable arguments; returns a tensor, or an object whose attributes may be.
        measure: bytes of a result.
    """
    kept: OrderedDict[Hashable, tuple[int, Made]] = OrderedDict()
    lock = threading.Lock()

    def remember(key: Hashable, made: Made) -> None:
        size = measure(made)
        if size > MOST_BYTES // 8:
            return
        with lock:
            kept[key] = size, made
            total = sum(each for each, _ in kept.values())
            while total > MOST_BYTES:
                total -= kept.popitem(last=False)[1][0]

    @wraps(make)
    def call(*args: Hashable) -> Made:
        if torch.compiler.is_compiling() or current_dispatch_mode() is not None:
            return make(*args)
        with lock:
            if args in kept:
                kept.move_to_end(args)
                return kept[args][1]
        with torch.inference_mode(False):  # later calls may need gradients
            made = make(*args)
        remember(args, made)
        return made

    return call
