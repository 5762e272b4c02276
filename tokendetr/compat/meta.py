"""Models without memory for their weights, also detectron2's Swin (checked with 02b5c4e2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["meta_device"]


class _RatesOnTheCpu(TorchFunctionMode):
    """Lets ``torch.linspace`` give values, which detectron2's Swin reads."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.linspace:
            options["device"] = "cpu"
        result: Tensor = func(*args, **options)
        return result


@contextmanager
def meta_device() -> Iterator[None]:
    """Build modules on the meta device inside the ``with`` block."""
    with torch.device("meta"), _RatesOnTheCpu():
        yield
