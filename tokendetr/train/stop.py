"""Orderly stops: handle the stop signals at every stage of a run."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from tokendetr.io.signals import handle_signals, restore_signals

__all__ = ["StopSignals", "TrainingInterrupted"]

_SECOND_SIGNAL_SECONDS = 3.0


class TrainingInterrupted(SystemExit):
    """The process was asked to stop, and has saved its state if it had any.

    Args:
        number: number of the signal; the exit code is 128 more, by the convention of shells.
        is_agreed: all ranks stop at the same place, so each may leave the process group on its own.
    """

    def __init__(self, number: int, *, is_agreed: bool = False) -> None:
        super().__init__(128 + number)
        self.is_agreed = is_agreed


class StopSignals:
    """Handle SIGTERM, SIGINT and SIGHUP during a ``with`` block.

    A signal interrupts the block at once if nothing can be lost (:meth:`interruptible`). Otherwise
    it is only recorded in :attr:`received`, for the trainer to check at the next safe point.
    Repeated SIGTERMs count once, as launchers and batch systems send several to every process of a
    job. A second Ctrl-C, some seconds after the first, ends the process immediately.

    Outside the main thread no signals arrive, and only :meth:`request` stops a run.

    Attributes:
        received: number of the first signal, None if there was none.
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
        self._previous = handle_signals(self._handle)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        restore_signals(self._previous)
        self._previous = {}

    def request(self, number: int) -> None:
        """Stop as if the signal had been received; may be called from any thread."""
        if self.received is not None:
            return
        if not self._previous:
            self.received = number
            return
        # The main thread may be blocked in a system call, which only a signal sent to it ends.
        self._is_requested = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, number)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the ``with`` block at once.

        Raises:
            TrainingInterrupted: a signal arrived during the block or before it.
        """
        before = self._is_interruptible
        # First the flag, then the check: a signal that arrives in between raises in the handler.
        # In the other order it would only be recorded, and the block would run on.
        self._is_interruptible = True
        try:
            if self.received is not None:
                raise TrainingInterrupted(self.received)
            yield
        finally:
            self._is_interruptible = before

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Protect a ``with`` block inside an interruptible one from signals."""
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
            self._is_interruptible = False  # further signals must not interrupt the cleanup
            raise TrainingInterrupted(number)

    def _handle_again(self, number: int) -> None:
        waited = time.monotonic() - self._received_at
        if number == signal.SIGINT and waited > _SECOND_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
