"""Types of command-line arguments, which are checked before any work."""

import argparse
from collections.abc import Callable
from pathlib import Path

from tokendetr.errors import OutputError
from tokendetr.io.outputs import check_output_file, check_output_folder

__all__ = [
    "OutputFile",
    "non_negative_int",
    "output_file",
    "output_folder",
    "positive_int",
    "share",
]


class OutputFile(str):
    """The name of a file to write."""


def output_file(text: str) -> str:
    """Check the name of a file to write; ``-`` is stdout, and ``a=b`` an override that follows.

    Raises:
        ArgumentTypeError: the file cannot be written.
    """
    if text == "-" or "=" in text:
        return text
    _checked(check_output_file, text)
    return OutputFile(text)


def output_folder(text: str) -> Path:
    """Check the name of a folder to write to, and create it if missing.

    Raises:
        ArgumentTypeError: the folder cannot be created or written to.
    """
    _checked(check_output_folder, text)
    return Path(text)


def positive_int(text: str) -> int:
    """Parse a whole number above 0, such as a number of images or of pixels.

    Raises:
        ArgumentTypeError: the text is no such number.
    """
    return _whole(text, least=1)


def non_negative_int(text: str) -> int:
    """Parse a whole number of at least 0.

    Raises:
        ArgumentTypeError: the text is no such number.
    """
    return _whole(text, least=0)


def share(text: str) -> float:
    """Parse a number in [0, 1], such as a score threshold.

    Raises:
        ArgumentTypeError: the text is no such number.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def _checked(check: Callable[[str], None], text: str) -> None:
    try:
        check(text)
    except OutputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
