"""Freed memory that a process keeps to use again, instead of giving it back to the system.

The system clears every page that it gives to a process, when the process first writes to it. glibc
gives the free end of its heap back as soon as that is about as large as one large tensor, so the
tensors of a large image were given back and fetched again several times in each pass.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from functools import cache

_LOGGER = logging.getLogger(__name__)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST_MMAP_THRESHOLD = 1 << 25
"""Larger blocks are always fetched from the system, and given back when they are freed."""

KEEP_MB = 128
"""Megabytes of the heap's free end that are kept, unless ``TOKENDETR_KEEP_MB`` says otherwise."""

_GLIBC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def _mallopt() -> Callable[[int, int], int] | None:
    """Return the C library's ``mallopt``; None if it has none (it is glibc's)."""
    try:
        found: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return None
    return found


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed memory of this process, from now on; later calls change nothing.

    ``TOKENDETR_KEEP_MB`` in the environment bounds what is kept, 0 leaves glibc as it is, and so do
    glibc's own variables.

    Returns:
        True if it keeps memory, False if it was left as it is or the C library is another.
    """
    wanted = os.environ.get("TOKENDETR_KEEP_MB", "")
    megabytes = int(wanted) if wanted.isdecimal() else KEEP_MB
    mallopt = _mallopt()
    if mallopt is None or not megabytes or any(name in os.environ for name in _GLIBC_VARIABLES):
        return False
    largest = (1 << 31) - 1  # mallopt takes a C int
    kept = mallopt(_TRIM_THRESHOLD, min(megabytes << 20, largest))
    kept &= mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    _LOGGER.debug("glibc keeps %d MB of freed memory: %s", megabytes, bool(kept))
    return bool(kept)
