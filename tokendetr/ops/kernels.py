"""Calls of the compiled operators, with PyTorch's own error types."""

from collections.abc import Callable
from typing import Any

import torch


def compiled_operator(name: str) -> Any:
    """Return the overload of a compiled operator, as traced programs call it."""
    return getattr(torch.ops.tokendetr, name).default


def call_kernel(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Call a compiled operator.

    Raises:
        torch.OutOfMemoryError: a device's memory is full. The kernels' stable ABI passes on an
            error's message, not its type.
    """
    try:
        return operator(*arguments)
    except RuntimeError as error:
        if "CUDA out of memory" in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
