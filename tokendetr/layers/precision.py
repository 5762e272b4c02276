"""Precision of a detector's evaluation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

__all__ = ["PRECISIONS", "Precision", "check_precision", "evaluated_in"]

Precision = Literal["float32", "bfloat16", "bf16"]
PRECISIONS = ("float32", "bfloat16", "bf16")


def check_precision(precision: str) -> None:
    """Check the name of a precision.

    Raises:
        ValueError: it is none of :data:`PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be 'float32', 'bfloat16' or 'bf16', got {precision!r}")


def evaluated_in(precision: str, model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which a model evaluates in a precision.

    Args:
        precision: "float32", or "bfloat16" ("bf16"): autocast, weights stay float32.
        model: the model, for its device.

    Raises:
        ValueError: another precision.
    """
    check_precision(precision)
    if precision == "float32":
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16)
