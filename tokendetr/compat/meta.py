"""Build models on the meta device, without memory for their weights.

detectron2's Swin needs help to be built there (checked with its commit 02b5c4e2).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["meta_device"]


class _RatesOnTheCpu(TorchFunctionMode):
    """Run ``torch.linspace`` on the CPU.

    Swin's constructor reads drop-path rates from its result, and a meta tensor has no values.
    """

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
