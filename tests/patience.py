"""Time limits that grow with how busy the machine is."""

import time
from collections.abc import Callable

__all__ = ["patience", "slowness", "wait_until"]

_BUSY_SECONDS = 0.2


def slowness() -> float:
    """How many times longer than alone this process takes now (at least 1), measured.

    The wall-clock time of a short loop over the processor time that it was given.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < _BUSY_SECONDS:
        pass
    return max(1.0, (time.perf_counter() - wall) / _BUSY_SECONDS)


def patience(seconds: float) -> float:
    """A limit for what takes less than ``seconds`` on an idle machine, on this one as it is now.

    Doubled, because the load may grow while one waits.
    """
    return seconds * 2 * slowness()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for an event instead of for a time.

    Args:
        condition: what to wait for; called again and again.
        seconds: in which it happens on an idle machine.
        what: named when it does not.

    Raises:
        TimeoutError: it did not happen, although the machine's load was allowed for.
    """
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            # Asked for again only now: a loaded machine may have become so in the meantime.
            limit = time.monotonic() + patience(seconds)
            while not condition():
                if time.monotonic() > limit:
                    raise TimeoutError(f"{what} did not happen within {seconds:g} s of an idle CPU")
                time.sleep(0.01)
            return
        time.sleep(0.01)
