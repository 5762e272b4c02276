"""Choice between the compiled kernels of an operator and its PyTorch form."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from tokendetr.compat.torch_private import function_is_transformed
from tokendetr.ops import library

_LOGGER = logging.getLogger(__name__)


class _OfThread(threading.local):
    """Depth of :func:`use_reference` blocks in this thread."""

    depth = 0


class _Process:
    """State of the process: number of open :func:`use_reference` blocks, and the one warning."""

    lock = threading.Lock()
    blocks = 0
    # torch.compile can guard on this attribute, but not on a thread-local variable: code that was
    # compiled while no block was open is compiled again, with the PyTorch form, inside a block.
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
    """Run the operators in PyTorch inside the ``with`` block, in the calling thread only.

    For comparisons. Other threads do not inherit it, not even autograd's for CUDA devices, in which
    activation checkpointing recomputes a forward pass.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def extension_available() -> bool:
    """Return True if the compiled kernels are available."""
    return library.library_facts().load_error is None


def use_extension(tensor: Tensor, operator: str = "ms_deform_attn") -> bool:
    """Return True if kernels run for a tensor's device; warn once if there are none.

    Transforms of ``torch.func`` cannot differentiate operators of a library: PyTorch runs there.
    """
    if _Process.any_block and _OF_THREAD.depth:
        return False
    if function_is_transformed():
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
