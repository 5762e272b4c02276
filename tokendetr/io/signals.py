"""The signals that ask a process to stop: one list, and how handlers of them are installed."""

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

__all__ = ["STOP_SIGNALS", "handle_signals", "restore_signals"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What batch systems, Ctrl-C and the end of a terminal or a connection send."""


def handle_signals(
    handler: Callable[[int, FrameType | None], Any],
    numbers: Sequence[signal.Signals] = STOP_SIGNALS,
) -> dict[int, Any]:
    """Install a handler of signals; a SIGHUP that is ignored, as under ``nohup``, stays so.

    Args:
        handler: called with the signal's number and the current frame.
        numbers: signals to handle.

    Returns:
        Number -> the handler from before, for :func:`restore_signals`; empty outside the main
        thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {
        number: signal.signal(number, handler)
        for number in numbers
        if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN)
    }


def restore_signals(previous: Mapping[int, Any]) -> None:
    """Put back the handlers that :func:`handle_signals` returned."""
    for number, handler in previous.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
