"""Orderly stops: what SIGTERM and SIGINT mean to a run, at every moment of it."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["StopSignals", "TrainingInterrupted"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECOND_SIGNAL_SECONDS = 3.0


class TrainingInterrupted(SystemExit):
    """The process was asked to stop; what there was to save is saved.

    Args:
        number: of the signal; the exit code is 128 more, as shells have it.
        is_agreed: all ranks stop at the same place, so each may leave its process group by itself.
    """

    def __init__(self, number: int, *, is_agreed: bool = False) -> None:
        super().__init__(128 + number)
        self.is_agreed = is_agreed


class StopSignals:
    """Takes note of SIGTERM and SIGINT while its ``with`` block runs.

    A signal interrupts the block at once where that loses nothing (:meth:`interruptible`) and is
    noted elsewhere, for :attr:`received` to be asked at the next good place. Repeated SIGTERMs mean
    the first one: launchers and batch systems send it to every process of a job, and each other. A
    second Ctrl-C, some seconds after the first, ends the process as it stands.

    Outside the main thread no signals arrive; then only :meth:`request` stops a run.

    Attributes:
        received: number of the signal, None where none came.
        notify: called with the number at the first signal, from the signal handler.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.notify: Callable[[int], None] | None = None
        self._received_at = 0.0
        self._is_interruptible = False
        self._is_requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def request(self, number: int) -> None:
        """Stop as if the signal had come; may be called by any thread."""
        if self.received is not None:
            return
        if not self._previous:
            self.received = number
            return
        # The main thread may wait in a system call, which only a signal of its own ends.
        self._is_requested = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, number)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal ends at once.

        Raises:
            TrainingInterrupted: a signal came during the block, or was noted before.
        """
        before = self._is_interruptible
        # The flag first: a signal between the two lines is seen by one of them.
        self._is_interruptible = True
        try:
            if self.received is not None:
                raise TrainingInterrupted(self.received)
            yield
        finally:
            self._is_interruptible = before

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """A block within an interruptible one that a signal does not end."""
        before = self._is_interruptible
        self._is_interruptible = False
        try:
            yield
        finally:
            self._is_interruptible = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_repeated = self.received is not None and not self._is_requested
        self._is_requested = False
        if is_repeated:
            self._handle_again(number)
        else:
            self.received = number
            self._received_at = time.monotonic()
            if self.notify is not None:
                self.notify(number)
        if self._is_interruptible:
            self._is_interruptible = False  # cleaning up is not interrupted in turn
            raise TrainingInterrupted(number)

    def _handle_again(self, number: int) -> None:
        waited = time.monotonic() - self._received_at
        if number == signal.SIGINT and waited > _SECOND_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
