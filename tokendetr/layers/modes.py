"""Training and evaluation modes of a model's parts."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside the ``with`` block.

    After it, every part has its own mode again: parts that are frozen in evaluation mode inside a
    model that trains stay so, which ``model.train()`` would end.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
