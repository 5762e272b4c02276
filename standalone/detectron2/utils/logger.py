"""Logging setup, rate-limited logging and small tables."""

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import Any

from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from termcolor import colored

__all__ = [
    "create_small_table",
    "log_every_n",
    "log_every_n_seconds",
    "log_first_n",
    "setup_logger",
]

_PLAIN_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
_DATE_FORMAT = "%m/%d %H:%M:%S"


class _ColorfulFormatter(logging.Formatter):
    """Formatter that abbreviates logger names and colors warnings and errors."""

    def __init__(self, *args: Any, root_name: str, abbrev_name: str = "", **kwargs: Any) -> None:
        self._root_name = root_name + "."
        self._abbrev_name = abbrev_name + "." if abbrev_name else abbrev_name
        super().__init__(*args, **kwargs)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.name = record.name.replace(self._root_name, self._abbrev_name)
        text = super().formatMessage(record)
        if record.levelno == logging.WARNING:
            prefix = colored("WARNING", "red", attrs=["blink"])
        elif record.levelno in (logging.ERROR, logging.CRITICAL):
            prefix = colored("ERROR", "red", attrs=["blink", "underline"])
        else:
            return text
        return prefix + " " + text


@functools.lru_cache
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Send a logger to the terminal (rank 0) and to a file (every rank), once.

    Args:
        output: a folder for ``log.txt``, or a file ending in .txt or .log; None for no file. Other
            ranks than 0 append ``.rank<N>``.
        distributed_rank: rank of this process.
        color: color the terminal output.
        name: name of the logger, and so of all loggers below it.
        abbrev_name: printed instead of ``name``; by default "d2" for detectron2.
        enable_propagation: pass records on to the parent logger.
        configure_stdout: write to the terminal.

    Returns:
        The logger.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name

    plain = logging.Formatter(_PLAIN_FORMAT, datefmt=_DATE_FORMAT)
    if configure_stdout and distributed_rank == 0:
        terminal = logging.StreamHandler(stream=sys.stdout)
        terminal.setLevel(logging.DEBUG)
        if color:
            terminal.setFormatter(
                _ColorfulFormatter(
                    colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s",
                    datefmt=_DATE_FORMAT,
                    root_name=name,
                    abbrev_name=str(abbrev_name),
                )
            )
        else:
            terminal.setFormatter(plain)
        logger.addHandler(terminal)

    if output is not None:
        filename = output
        if not output.endswith((".txt", ".log")):
            filename = os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename = f"{filename}.rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(filename) or ".")
        file_handler = logging.StreamHandler(_cached_log_stream(filename))
        file_handler.setLevel(logging.DEBUG)
        file_handler.setFormatter(plain)
        logger.addHandler(file_handler)
    return logger


@functools.cache
def _cached_log_stream(filename: str) -> Any:
    """Open a log file once, also when several loggers write to it."""
    # line buffering for local files; remote ones may only allow large blocks
    buffering = 1 if "://" not in filename else -1
    stream = PathManager.open(filename, "a", buffering=buffering)
    atexit.register(stream.close)
    return stream


def _find_caller() -> tuple[str, tuple[str, int, str]]:
    """Return the module of the first caller outside this file, and a key of the place."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if os.path.join("utils", "logger.") not in code.co_filename:
            module = frame.f_globals["__name__"]
            if module == "__main__":
                module = "detectron2"
            return module, (code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    raise RuntimeError("no caller outside the logger module")


_LOG_COUNTER: Counter[Any] = Counter()
_LOG_TIMER: dict[Any, float] = {}


def log_first_n(
    lvl: int,
    msg: str,
    n: int = 1,
    *,
    name: str | None = None,
    key: str | tuple[str, ...] = "caller",
) -> None:
    """Log only the first ``n`` times.

    Args:
        lvl: the logging level.
        msg: the message.
        n: how often to log.
        name: name of the logger; by default the caller's module.
        key: identity of a log: "caller" (the place in the code), "message", or both as a tuple.
    """
    if isinstance(key, str):
        key = (key,)
    assert len(key) > 0
    module, place = _find_caller()
    hash_key: tuple[Any, ...] = ()
    if "caller" in key:
        hash_key += place
    if "message" in key:
        hash_key += (msg,)
    _LOG_COUNTER[hash_key] += 1
    if _LOG_COUNTER[hash_key] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first and then every ``n``-th call at this place in the code."""
    module, key = _find_caller()
    _LOG_COUNTER[key] += 1
    if n == 1 or _LOG_COUNTER[key] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log at most once in ``n`` seconds at this place in the code."""
    module, key = _find_caller()
    last = _LOG_TIMER.get(key)
    now = time.time()
    if last is None or now - last >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _LOG_TIMER[key] = now


def create_small_table(small_dict: Mapping[str, Any]) -> str:
    """Return a table with one column per entry, for dicts that fit a line."""
    return tabulate(
        [tuple(small_dict.values())],
        headers=tuple(small_dict.keys()),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )
