"""Time limits that scale with the load of the machine."""

import time
from collections.abc import Callable

__all__ = ["patience", "slowness", "wait_until"]

_BUSY_SECONDS = 0.2


def slowness() -> float:
    """Measure how many times slower than alone this process runs now (at least 1).

    The factor is the wall-clock time of a short loop divided by its processor time.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < _BUSY_SECONDS:
        pass
    return max(1.0, (time.perf_counter() - wall) / _BUSY_SECONDS)


def patience(seconds: float) -> float:
    """Return a time limit, in seconds, for work that takes ``seconds`` on an idle machine.

    The limit is doubled because the load may grow during the wait.
    """
    return seconds * 2 * slowness()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds.

    Args:
        condition: called repeatedly until it is true.
        seconds: time that it takes on an idle machine.
        what: name of the event in the error.

    Raises:
        TimeoutError: the condition is still false, with the machine's load allowed for.
    """
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            # Measured only now: the machine may have become busy in the meantime.
            limit = time.monotonic() + patience(seconds)
            while not condition():
                if time.monotonic() > limit:
                    raise TimeoutError(f"{what} did not happen within {seconds:g} s of an idle CPU")
                time.sleep(0.01)
            return
        time.sleep(0.01)
