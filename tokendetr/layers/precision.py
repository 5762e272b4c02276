"""Precision of a detector: of its weights, and of its evaluation."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokendetr.errors import ConfigError
from tokendetr.layers.modes import evaluating

__all__ = [
    "PRECISIONS",
    "Precision",
    "as_converted",
    "at_least_float32",
    "check_precision",
    "emulates_bfloat16",
    "evaluated_in",
    "geometry_dtype",
    "parse_dtype",
]

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16", "bf16"]
PRECISIONS = ("float32", "bfloat16", "bf16")
_AMP_DTYPES = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def check_precision(precision: str) -> None:
    """Check the name of a precision.

    Raises:
        ValueError: it is none of :data:`PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be 'float32', 'bfloat16' or 'bf16', got {precision!r}")


def emulates_bfloat16() -> bool:
    """Return whether products in bfloat16 take longer than in float32 on this processor.

    True on x86 without AVX-512's or AMX's products in bfloat16: about twice as long with AVX-512,
    four times with AVX2. False where PyTorch cannot tell.
    """
    features: dict[str, Any] = dict(getattr(torch.cpu, "get_capabilities", dict)())
    known = features.get("architecture") == "x86_64"
    return known and not (features.get("avx512_bf16") or features.get("amx_bf16"))


@cache
def _warn_of_emulation() -> None:
    if emulates_bfloat16():
        logger.warning("this processor has no bfloat16 instructions: float32 is faster")


@contextmanager
def evaluated_in(precision: str, model: nn.Module) -> Iterator[None]:
    """Evaluate a model in a precision inside the ``with`` block, also if it is in training mode.

    Args:
        precision: "float32", or "bfloat16" ("bf16"): autocast, weights stay float32.
        model: the model. It and its parts, of which some may be frozen in evaluation mode, get
            their modes back.

    Raises:
        ValueError: another precision.
    """
    check_precision(precision)
    # Setting the mode visits every module.
    with evaluating(model) if model.training else nullcontext():
        if precision == "float32":
            yield
        else:
            kind = next(model.parameters()).device.type
            if kind == "cpu":
                _warn_of_emulation()
            with torch.autocast(kind, dtype=torch.bfloat16):
                yield


def parse_dtype(name: str) -> torch.dtype:
    """Return the dtype that ``train.amp.dtype`` names.

    Raises:
        ConfigError: it is neither float16 nor bfloat16.
    """
    if not isinstance(name, str) or name not in _AMP_DTYPES:
        raise ConfigError(f"train.amp.dtype={name!r}: use float16 or bfloat16")
    return _AMP_DTYPES[name]


def geometry_dtype(weights: torch.dtype) -> torch.dtype:
    """Return the dtype of pixels, positions, boxes and scores beside weights of a dtype.

    It is at least float32: bfloat16 would round a coordinate to 1/256 of the image.
    """
    return torch.promote_types(weights, torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor in its :func:`geometry_dtype`."""
    return x.to(geometry_dtype(x.dtype))


def as_converted(weights: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which a model runs that ``.half()`` or ``.to(torch.bfloat16)`` converted.

    It is autocast to the weights' dtype: every layer with weights casts what enters it, and what
    :func:`geometry_dtype` is for stays as it is. Models of other precisions need none.

    Args:
        weights: any of the model's floating tensors.
    """
    if weights.dtype not in (torch.float16, torch.bfloat16):
        return nullcontext()
    return torch.autocast(weights.device.type, dtype=weights.dtype)
