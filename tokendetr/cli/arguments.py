"""Command lines alike for all programs: overrides of a config come last, without a flag."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

__all__ = ["parse_with_overrides"]

_OVERRIDE = re.compile(r"([+~]{1,2}\w|(model|dataloader|optimizer|lr_multiplier|train)\b)[^=\s]*=")


def described_parser(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows a module's docstring as it is, examples and all."""
    return argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parse_with_overrides(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line that may end with overrides, whatever option stands before them.

    An option that takes several values, such as ``--input``, would swallow overrides after it.

    Args:
        parser: of the options. One with an ``--opts`` of detectron2's habit keeps it.
        arguments: None: those of the process.

    Returns:
        The options; ``opts`` is the list of overrides.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments)
    overrides: list[str] = []
    while rest and _OVERRIDE.match(rest[-1]):
        overrides.insert(0, rest.pop())
    if rest and rest[-1] == "--opts":
        rest.pop()
    args = parser.parse_args(rest)
    args.opts = [*(getattr(args, "opts", None) or []), *overrides]
    return args
