"""Validate COCO-format data sets before training, and report what to fix.

Examples:
    tokendetr check-data --config-file dino_shapes
    tokendetr check-data --json fruit/train.json --images fruit/images --num-classes 5
    tokendetr check-data --json fruit/train.json --images fruit/images --write fruit/complete.json
    tokendetr check-data --config-file my_config.py --open-images
    tokendetr check-data --config-file dino_shapes --pictures out/ train.data_folder=my_cells

Checked are ids, sizes, file names and files, categories, boxes, the number of classes, and that
training set, test set and evaluator have the same classes; with --open-images also that the loader
can read every image and that it has the annotated size. With --config-file the checks are those
before a training's first step. The exit code is 1 if there are faults.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from tokendetr.cli.argument_types import output_file, output_folder, positive_int
from tokendetr.cli.arguments import described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.config.load import load_config
from tokendetr.data.coco_check import read_coco, validate_coco
from tokendetr.data.config_hints import config_hints
from tokendetr.data.survey import check_image_files, survey_coco
from tokendetr.data.validate import (
    CocoFiles,
    coco_files,
    compare_parts,
    dataset_names,
    model_classes,
    validate_registered,
)
from tokendetr.errors import ConfigError, DatasetError
from tokendetr.io.atomic import write_atomically
from tokendetr.visualization.dataset import draw_samples, draw_survey


@dataclass(frozen=True)
class Task:
    """A data set to check.

    Attributes:
        name: its name, or its JSON file.
        files: its files.
        num_classes: number of classes of the model, if known.
        validate: runs the checks; raises an error that lists the faults.
    """

    name: str
    files: CocoFiles
    num_classes: int | None
    validate: Callable[[], None]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config-file", metavar="CONFIG", help="check the data sets of a config (name or file)"
    )
    source.add_argument("--json", metavar="FILE", help="check these annotations")
    parser.add_argument("--images", metavar="FOLDER", help="images of --json")
    parser.add_argument(
        "--image-root",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder that symbolic links may lead to, with --json; may be repeated",
    )
    parser.add_argument(
        "--num-classes", type=positive_int, help="classes of the model, with --json"
    )
    parser.add_argument(
        "--write",
        type=output_file,
        metavar="FILE",
        help="write the annotations of --json with all fields filled in, and check that file",
    )
    parser.add_argument("--open-images", action="store_true", help="also decode every image")
    parser.add_argument(
        "--pictures",
        type=output_folder,
        metavar="FOLDER",
        help="also draw charts of the boxes, and samples with labels",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="key=value overrides of the config")
    args = parse_with_overrides(parser, arguments)
    if args.json and not args.images:
        parser.error("--json needs --images FOLDER")
    if args.write and not args.json:
        parser.error("--write needs --json FILE")
    return args


def write_complete(source: str, target: str) -> None:
    """Write annotations with ``area``, ``iscrowd`` and plain ids, as this project reads them.

    Raises:
        FileNotFoundError, DatasetError: they cannot be read.
    """
    write_atomically(target, json.dumps(read_coco(source)).encode())


def tasks(args: argparse.Namespace, cfg: DictConfig | None) -> Iterator[Task]:
    """Yield the data sets that the command line names.

    Args:
        args: the command line.
        cfg: the config of ``--config-file``.

    Raises:
        DatasetError: a name is not registered.
    """
    if args.json:
        files = CocoFiles(args.json, args.images, has_file_names=True)
        options = {"num_classes": args.num_classes, "image_roots": args.image_root}
        check_files = partial(validate_coco, args.json, args.images, **options)
        yield Task(args.json, files, args.num_classes, check_files)
        return
    assert cfg is not None
    for name, for_evaluation in dataset_names(cfg):
        found = coco_files(name)
        if found is None:
            print(f"{name}: not in COCO's format, not checked\n")
        else:
            check_files = partial(validate_registered, cfg, name, for_evaluation)
            yield Task(name, found, model_classes(cfg), check_files)


def check(task: Task, *, open_images: bool, pictures: Path | None = None) -> str:
    """Check a data set and show what it holds; return its faults, "" if there are none."""
    files = task.files
    try:
        task.validate()
        if open_images:
            check_image_files(
                files.json_file, files.image_root, has_file_names=files.has_file_names
            )
    except (DatasetError, FileNotFoundError) as error:
        return str(error)
    survey = survey_coco(
        files.json_file, num_classes=task.num_classes, has_file_names=files.has_file_names
    )
    print(f"{task.name}: no faults")
    for name, count in survey.counts.items():
        print(f"  {count:>9,} {name}")
    for sentence in survey.advice:
        print(f"  look at: {sentence}")
    if pictures:
        print(f"  pictures: {draw(task, pictures)}")
    print()
    return ""


def draw(task: Task, folder: Path) -> Path:
    """Draw a data set's charts and samples into a subfolder; return that folder."""
    name = re.sub(r"\W+", "_", Path(task.name).stem).strip("_")
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    files = task.files
    draw_survey(files.json_file, target / "survey.png")
    draw_samples(files.json_file, files.image_root, target, has_file_names=files.has_file_names)
    return target


@program()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    faults = []
    try:
        if args.write:
            write_complete(args.json, args.write)
            args.json = args.write
        cfg = load_config(args.config_file, args.opts) if args.config_file else None
        for task in tasks(args, cfg):
            fault = check(task, open_images=args.open_images, pictures=args.pictures)
            if fault:
                faults.append(fault)
        if cfg is not None and not faults:
            compare_parts(cfg)
            print("\n".join(config_hints(cfg)))
    except (ConfigError, DatasetError, FileNotFoundError) as error:
        faults.append(str(error))
    if faults:
        sys.exit("\n\n".join(f"error: {fault}" for fault in faults))


if __name__ == "__main__":
    main()
