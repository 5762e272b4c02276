"""A method of token reduction with its options, as one argument of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from token_transforming import Reduction

__all__ = ["WAY_OPTIONS", "Way"]


def _layers(text: str) -> list[int]:
    return [int(layer) for layer in text.split("+")]


def _ratios(text: str) -> list[float]:
    return [float(ratio) for ratio in text.split("+")]


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
    "keep_ratio": _ratios,
}
"""Option of a reduction -> its parser; ``layers=0+2`` overrides --layers, and one keep ratio for
each layer, ``keep_ratio=0.45+0.8``, --keep-ratios."""


@dataclass(frozen=True)
class Way:
    """A method of reduction with its options, an argument of ``--ways``.

    Attributes:
        name: the text on the command line.
        options: arguments of :func:`token_transforming.transform`.
    """

    name: str
    options: dict[str, Any]

    def keep_ratios(self, others: Sequence[float]) -> Sequence[float]:
        """Return the keep ratios of its points: ``others``, or the mean of its own."""
        own = self.options.get("keep_ratio")
        return others if own is None else [sum(own) / len(own)]

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
        one = {key: value for key, value in options.items() if key not in ("layers", "keep_ratio")}
        try:
            for ratio in options.get("keep_ratio", [Reduction.keep_ratio]):
                Reduction(keep_ratio=ratio, **one)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from error
        return cls(text, options)
