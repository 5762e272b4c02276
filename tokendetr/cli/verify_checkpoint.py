"""Check whether a checkpoint fits a config, tensor by tensor, before anything is run.

Examples:
    tokendetr verify-checkpoint dino_r50_4scale_24ep.pth          # a published file, by its name
    tokendetr verify-checkpoint model_final.pth --config-file my_config.py model.num_classes=5
    tokendetr verify-checkpoint --list                            # the published files

Prints which tensors match; one with several names counts once. The exit code is 0 if all do, 1 if
one is missing, unexpected or of another shape. For a published checkpoint, the expected AP and the
command that measures it are printed.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokendetr.analysis.tables import Table
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.published import (
    PublishedCheckpoint,
    find_published,
    published_checkpoints,
)
from tokendetr.checkpoint.weights import LoadReport, load_matching_weights
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.config.model import model_on_cpu


def verify(path: str, config: str, overrides: Sequence[str] = ()) -> LoadReport:
    """Build a config's model on the CPU, load a file into it and report which tensors match.

    Args:
        path: of the checkpoint.
        config: a config's file or name.
        overrides: ``key=value`` each.

    Raises:
        ConfigError: of the config or the overrides.
        FileNotFoundError, CheckpointError: no such file, or one that cannot be loaded.
    """
    return load_matching_weights(AtomicCheckpointer(model_on_cpu(config, overrides)), path)[0]


def published_table() -> Table:
    """Return the published files as a table of markdown.

    Overrides that all files of a method need are stated once, below the table.
    """
    shared = _shared_overrides(published_checkpoints())
    rows = [
        (
            f"[{row.file}]({row.url})",
            f"`{row.config}`",
            f"{row.ap:.1f}",
            row.note or _needed(row, shared),
        )
        for row in published_checkpoints()
    ]
    columns = ("file", "config here", "AP stated by its authors", "overrides, or what it needs")
    notes = [f"**{name}**: {_code(overrides)}." for name, overrides in shared.values()]
    return Table("published", "", columns, rows, notes)


_METHODS = {"focus": "Focus-DETR's", "sparse": "Sparse DETR's"}
"""First word of the configs' names -> what the files' common overrides are called."""


def _shared_overrides(
    rows: Sequence[PublishedCheckpoint],
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the overrides that all files of a method have which have any, with their name."""
    shared = {}
    for method, name in _METHODS.items():
        each = [row.overrides for row in rows if _method(row) == method and row.overrides]
        common = tuple(o for o in each[0] if all(o in others for others in each))
        shared[method] = (name, common)
    return shared


def _needed(row: PublishedCheckpoint, shared: Mapping[str, tuple[str, tuple[str, ...]]]) -> str:
    name, common = shared.get(_method(row), ("", ()))
    own = _code([override for override in row.overrides if override not in common])
    names = [f"**{name}**"] if common and row.overrides else []
    return " ".join([*names, own]).strip()


def _method(row: PublishedCheckpoint) -> str:
    return row.config.partition("_")[0]


def _code(overrides: Sequence[str]) -> str:
    return " ".join(f"`{override}`" for override in overrides)


@program(ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("file", nargs="?", help="the checkpoint")
    add_config_option(
        parser,
        "the model (default: that of a published file, found by its name)",
        required=False,
    )
    parser.add_argument("--list", action="store_true", help="list the published files")
    parser.add_argument("opts", nargs="*", help="overrides of the config, key=value")
    args = parse_with_overrides(parser, arguments, intermixed=True)
    if args.list:
        print(published_table().markdown())
        return
    if not args.file:
        parser.error("name a checkpoint, or --list")
    known = find_published(args.file)
    config = args.config_file or (known.config if known else None)
    if config is None:
        sys.exit(
            f"error: {Path(args.file).name} is not the name of a published file: name the config "
            "that it belongs to with --config-file"
        )
    overrides = [*(known.overrides if known and not args.config_file else ()), *args.opts]
    report = verify(args.file, config, overrides)
    print(f"{args.file} in {' '.join([config, *overrides])}:\n{report.table()}")
    if not report.is_complete:
        sys.exit(
            f"error: not every tensor fits ({report.counts()}). Names: rename or drop them with "
            "tokendetr export-weights --convert; shapes: name the config and overrides that the "
            "file was trained with"
        )
    print("every tensor fits")
    if known and not args.config_file:
        print(
            f"its authors state {known.ap} AP on COCO val2017; measure it with\n{known.command()}"
        )


if __name__ == "__main__":
    main()
