"""What becomes of a batch that a loader process cannot send, which no documented option says."""

import os
import sys
from multiprocessing.queues import Queue
from typing import Any

__all__ = ["end_if_sending_fails"]


def end_if_sending_fails() -> None:
    """Make this process end if an object that it puts into a queue cannot be sent.

    By default the thread that sends prints a traceback and drops the object: full shared memory, or
    a value that cannot be pickled, would let the reader wait forever. A process that ends is
    noticed.
    """
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def _end(error: Exception, sent: Any) -> None:
    if not isinstance(error, (ConnectionError, EOFError)):  # the reader has hung up
        reason = f"{type(error).__name__}: {error}"
        print(f"a process cannot send what it has made: {reason}", file=sys.stderr, flush=True)
    os._exit(1)
