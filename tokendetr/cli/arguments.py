"""Common command-line handling: config overrides at the end, and protection of input files."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tokendetr.cli.argument_types import OutputFile, positive_int
from tokendetr.errors import OutputError
from tokendetr.io.outputs import check_output_file

__all__ = [
    "add_config_option",
    "add_overrides_option",
    "add_size_options",
    "described_parser",
    "overrides_last",
    "parse_with_overrides",
]

_LEGEND = re.compile(r"\n\nShapes: .*?(?=\n\n|\Z)", re.DOTALL)
_OVERRIDE = re.compile(r"([+~]{1,2}\w|(model|dataloader|optimizer|lr_multiplier|train)\b)[^=\s]*=")


class _Parser(argparse.ArgumentParser):
    """Refuses empty values, and an output file that is also one of the other arguments."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and compare files to write with all other files that the command line names."""
        given = sys.argv[1:] if args is None else list(args)
        if "" in given:  # such as an unset shell variable; as a path it would mean this folder
            place = given.index("")
            before = f"value after {given[place - 1]}" if place else "first argument"
            self.error(f"the {before} is empty")
        found, rest = super().parse_known_args(args, namespace)
        self.check_outputs([*vars(found).values(), *rest])
        return found, rest

    def check_outputs(self, values: Sequence[Any]) -> None:
        """End the program if a file to be written is named twice, or is one of its inputs."""
        outputs = [value for value in _texts(values) if isinstance(value, OutputFile)]
        inputs = [value for value in _texts(values) if not isinstance(value, OutputFile)]
        # An override may name a file after its equals sign.
        inputs += [text.partition("=")[2].partition("?")[0] for text in inputs if "=" in text]
        for number, output in enumerate(outputs):
            try:
                check_output_file(output, filter(None, [*inputs, *outputs[:number]]))
            except OutputError as error:
                self.error(str(error))


def _texts(values: Sequence[Any]) -> Iterator[str]:
    """Return the texts and paths among the values of arguments, also in lists."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _texts(value)
        elif isinstance(value, (str, os.PathLike)):
            yield value if isinstance(value, str) else os.fspath(value)


def described_parser(docstring: str | None) -> _Parser:
    """Return a parser whose help shows a module's docstring, including the examples.

    The legend of tensors' dimensions, which readers of the code need, is left out. The parser
    refuses an output file (:func:`~tokendetr.cli.argument_types.output_file`) that is also one of
    the other arguments.
    """
    description = None if docstring is None else _LEGEND.sub("", docstring)
    return _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config_option(
    parser: argparse.ArgumentParser,
    of: str = "a detector",
    *,
    trained: bool = False,
    **options: Any,
) -> None:
    """Add ``--config-file``, required unless ``options`` say otherwise.

    Args:
        parser: the parser.
        of: what the config is of, for the help.
        trained: the program uses a trained detector, and takes the folder of a run too.
        **options: further arguments of ``add_argument``.
    """
    parser.add_argument(
        "--config-file",
        metavar="CONFIG",
        help=f"config of {of}: a name of `tokendetr list`, or a .py or .yaml file"
        + (", or the folder of a run" if trained else ""),
        **{"required": True, **options},
    )


def add_overrides_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--opts``, detectron2's option for overrides, of programs that had it before."""
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="key=value overrides of the config; also accepted at the end without this option",
    )


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Add detrex's options for the size that images are resized to."""
    for side, name in (("shorter", "--min_size_test"), ("longest", "--max_size_test")):
        parser.add_argument(
            name, type=positive_int, help=f"{side} side in pixels (default: the config's)"
        )


def overrides_last(arguments: Sequence[str]) -> list[str]:
    """Move overrides behind all other arguments; both keep their order.

    Args:
        arguments: the command line.
    """
    return sorted(arguments, key=lambda word: _OVERRIDE.match(word) is not None)


def parse_with_overrides(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, *, intermixed: bool = False
) -> argparse.Namespace:
    """Parse a command line with overrides among its words, after any option.

    argparse alone would take overrides after an option with several values, such as ``--input``, as
    further values of it, and options after overrides as further overrides.

    Args:
        parser: the parser, with or without :func:`add_overrides_option`.
        arguments: the command line; None for the process's.
        intermixed: other words, such as overrides of further keys, may stand anywhere.

    Returns:
        The options; ``opts`` is the list of overrides.
    """
    rest = overrides_last(sys.argv[1:] if arguments is None else arguments)
    overrides: list[str] = []
    while rest and _OVERRIDE.match(rest[-1]):
        overrides.insert(0, rest.pop())
    if rest and rest[-1] == "--opts":
        rest.pop()
    args = parser.parse_intermixed_args(rest) if intermixed else parser.parse_args(rest)
    args.opts = [*(getattr(args, "opts", None) or []), *overrides]
    if isinstance(parser, _Parser):
        parser.check_outputs(list(vars(args).values()))
    return args
