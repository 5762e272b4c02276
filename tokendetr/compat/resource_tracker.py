"""Start multiprocessing's resource tracker, which has no documented way to protect it."""

import signal
from multiprocessing import resource_tracker

__all__ = ["start_resource_tracker"]


def start_resource_tracker() -> None:
    """Start the tracker, which lives as long as this process's children, deaf to SIGHUP.

    It already ignores SIGINT and SIGTERM. The end of a terminal would kill it, and a second one
    print a traceback for everything that the first one knew. It inherits what is blocked here; a
    SIGHUP that arrives meanwhile is delivered afterward.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
