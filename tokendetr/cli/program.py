"""How every command-line program ends."""

import contextlib
import functools
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec

from tokendetr.errors import EXPECTED_ERRORS
from tokendetr.io.signals import STOP_SIGNALS, handle_signals, restore_signals

__all__ = ["program"]

Arguments = ParamSpec("Arguments")
Main = Callable[Arguments, None]


def program(*expected: type[Exception]) -> Callable[[Main[Arguments]], Main[Arguments]]:
    """Make a function the main function of a program.

    An expected error, one of the operating system, or a lack of memory that Python or NumPy reports
    ends it with one line and exit code 1; Ctrl-C with 130; SIGTERM with 143 and SIGHUP with 129, so
    that temporary files are removed; and a reader of its output that has gone, as in ``| head``,
    with 141.

    Args:
        expected: errors whose message is complete, besides ``tokendetr.errors.EXPECTED_ERRORS``.
    """
    caught = (*EXPECTED_ERRORS, OSError, MemoryError, *expected)

    def decorated(main: Main[Arguments]) -> Main[Arguments]:
        @functools.wraps(main)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            _prepare_streams()
            try:
                _require_working_folder()
                with _cleaned_up_by_signals():
                    main(*args, **kwargs)
                    sys.stdout.flush()
            except KeyboardInterrupt:
                sys.exit(128 + signal.SIGINT)
            except Exception as error:
                if isinstance(error, BrokenPipeError) and _reader_is_gone():
                    sys.exit(128 + signal.SIGPIPE)
                if not isinstance(error, caught):
                    raise
                sys.exit(f"error: {_in_words(error)}")

        return run

    return decorated


def _in_words(error: Exception) -> str:
    if isinstance(error, MemoryError):  # often without a message
        return f"out of memory: {error}".rstrip(": ")
    # A KeyError's text is the repr of its message.
    return str(error.args[0] if isinstance(error, KeyError) else error)


def _prepare_streams() -> None:
    """Print to nowhere what the shell has closed, and names that the terminal cannot show too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def _require_working_folder() -> None:
    """Refuse a working folder that is gone, without which torch aborts the process later.

    Raises:
        FileNotFoundError: the folder was removed, and perhaps made anew, under its name.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "the working folder was removed: change to a folder (cd), also if it was made anew"
        ) from error


@contextlib.contextmanager
def _cleaned_up_by_signals() -> Iterator[None]:
    """Let stop signals raise SystemExit in a ``with`` block, but those handled or ignored."""
    free = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    previous = handle_signals(lambda number, _: sys.exit(128 + number), free)
    try:
        yield
    finally:
        restore_signals(previous)


def _reader_is_gone() -> bool:
    """Return whether nobody reads the standard output; then Python must not flush it at exit."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # asks for errors alone
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
