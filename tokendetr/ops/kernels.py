"""Calls of the compiled operators, with PyTorch's own types of errors."""

from collections.abc import Callable
from typing import Any

import torch


def compiled_operator(name: str) -> Any:
    """Return the overload of a compiled operator, as it stands in traced programs."""
    return getattr(torch.ops.tokendetr, name).default


def call_kernel(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Call a compiled operator.

    Raises:
        torch.OutOfMemoryError: if a device's memory is full. The stable ABI that the kernels are
            built on knows no types of errors, only their words.
    """
    try:
        return operator(*arguments)
    except RuntimeError as error:
        if "CUDA out of memory" in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
