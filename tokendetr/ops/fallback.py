"""Choice between the compiled kernels of an operator and its plain PyTorch form."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from tokendetr.ops import library

_LOGGER = logging.getLogger(__name__)


class _OfThread(threading.local):
    """Depth of :func:`use_reference` blocks in this thread."""

    depth = 0


class _Process:
    """State of the process: threads inside :func:`use_reference`, and the one warning."""

    lock = threading.Lock()
    blocks = 0
    # torch.compile guards on an attribute, not on a thread's variable: code compiled while no
    # thread was in a block is compiled again, for the plain form, inside one.
    any_block = False
    announced = False


_OF_THREAD = _OfThread()


def _count(change: int) -> None:
    _OF_THREAD.depth += change
    with _Process.lock:
        _Process.blocks += change
        _Process.any_block = _Process.blocks > 0


@contextmanager
def use_reference() -> Iterator[None]:
    """Run the operators as plain PyTorch inside the ``with`` block, in the calling thread only.

    For comparisons. Threads that the block starts do not inherit it; among them are autograd's for
    CUDA devices, where activation checkpointing recomputes a forward pass.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def extension_available() -> bool:
    """Return whether the compiled kernels are there."""
    return library.library_facts().load_error is None


def use_extension(tensor: Tensor, operator: str = "ms_deform_attn") -> bool:
    """Return whether the kernels run for a tensor's device; warn once if they cannot."""
    if _Process.any_block and _OF_THREAD.depth:
        return False
    reason = library.why_without(tensor.device.type)
    if reason is None:
        return True
    if not _Process.announced:
        _Process.announced = True
        _LOGGER.warning(
            "%s runs as plain PyTorch, which is slow: there are no compiled kernels (%s). "
            "Install again with `pip install --no-build-isolation`, see docs/install.md",
            operator,
            reason,
        )
    return False
