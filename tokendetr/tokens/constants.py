"""Cache of tensors that depend on sizes alone, from one batch to the next.

Computing them takes many small operators, which on small images cost as much as the layers.
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
"""Most bytes of tensors that one function keeps. A result of more than an eighth of this is
computed anew each time: for large batches, computing it costs little beside the layers."""


def bytes_of(made: object) -> int:
    """Return the bytes of a tensor, or of the tensors among an object's attributes."""
    if isinstance(made, Tensor):
        return made.nbytes
    return sum(each.nbytes for each in vars(made).values() if isinstance(each, Tensor))


def kept_tensors(
    make: Callable[..., Made], measure: Callable[[Made], int] = bytes_of
) -> Callable[..., Made]:
    """Decorate a function so that it caches its latest results, which callers must not write to.

    The cache is not used while operators are traced, compiled or counted: these need to see all of
    them.

    Args:
        make: a function of hashable arguments that returns a tensor or an object with tensors as
            attributes.
        measure: returns the bytes of a result.
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
