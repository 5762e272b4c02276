"""Which form of an operator runs: the compiled kernels, or plain PyTorch where they cannot."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tokendetr.ops import extension

_LOGGER = logging.getLogger(__name__)


class _Fallback:
    """Whether plain PyTorch is forced, and whether its use was announced."""

    forced = 0
    announced = False


@contextmanager
def use_reference() -> Iterator[None]:
    """Make the operators run as plain PyTorch inside the ``with`` block (for comparisons)."""
    _Fallback.forced += 1
    try:
        yield
    finally:
        _Fallback.forced -= 1


def extension_available() -> bool:
    """Return whether the compiled kernels are there."""
    return extension.load_error() is None


def use_extension(tensor: Tensor, operator: str = "ms_deform_attn") -> bool:
    """Return whether the kernels run for a tensor's device; say it once where they cannot."""
    if _Fallback.forced:
        return False
    reason = extension.load_error(operator)
    if reason is None and tensor.device.type in ("meta", *extension.device_types()):
        return True
    if not _Fallback.announced:
        _Fallback.announced = True
        reason = reason or f"it was built without kernels for {tensor.device.type}"
        _LOGGER.warning(
            "%s runs as plain PyTorch, which is slow: the compiled extension cannot be used (%s). "
            "Build it with `make build` or `pip install --no-build-isolation --no-deps -e .`",
            operator,
            reason,
        )
    return False


def autocasts(tensor: Tensor) -> bool:
    """Return whether autocast is on for a tensor's device."""
    kind = tensor.device.type
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
