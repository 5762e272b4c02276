"""A method of token reduction with its options, as one argument of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from token_transforming import Reduction

__all__ = ["WAY_OPTIONS", "Way"]


def _layers(text: str) -> list[int]:
    return [int(layer) for layer in text.split("+")]


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


WAY_OPTIONS: dict[str, Callable[[str], Any]] = {
    "selection": str,
    "threshold": float,
    "temperature": float,
    "sizes": str,
    "recovery": str,
    "similarity": str,
    "normalize": _flag,
    "layers": _layers,
}
"""Option of a reduction -> its parser; ``layers=0+2`` overrides --layers."""


@dataclass(frozen=True)
class Way:
    """A method of reduction with its options, an argument of ``--ways``.

    Attributes:
        name: the text on the command line.
        options: arguments of :func:`token_transforming.transform`.
    """

    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Way:
        """Read ``method[:option=value...]``.

        Raises:
            argparse.ArgumentTypeError: for an unknown method or option, or a wrong value.
        """
        method, *settings = text.split(":")
        options: dict[str, Any] = {"method": method}
        for setting in settings:
            option, _, value = setting.partition("=")
            if option not in WAY_OPTIONS:
                raise argparse.ArgumentTypeError(f"{text}: no option is named {option!r}")
            try:
                options[option] = WAY_OPTIONS[option](value)
            except ValueError as error:
                raise argparse.ArgumentTypeError(f"{text}: {option}={value}: {error}") from error
        try:
            Reduction(**{name: value for name, value in options.items() if name != "layers"})
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from error
        return cls(text, options)
