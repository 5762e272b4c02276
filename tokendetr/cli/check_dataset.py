"""Check COCO-format data sets before training, and say what to fix.

Examples:
    python tools/check_dataset.py --config-file projects/dino/configs/dino_shapes.py
    python tools/check_dataset.py --json fruit/train.json --images fruit/images --num-classes 5
    python tools/check_dataset.py --config-file my_config.py --open-images

Checked: ids, sizes, file names and files, categories, boxes, the number of classes, and that
training and test sets number the same classes alike; with --open-images that every image decodes
and has the size it is said to have. The exit code is 1 where there are faults.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokendetr.config.load import load_config
from tokendetr.data.survey import check_image_files, class_names, survey_coco
from tokendetr.data.validate import (
    CocoFiles,
    coco_files,
    dataset_names,
    model_classes,
    validate_coco,
)
from tokendetr.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class Task:
    """A data set to check."""

    name: str
    files: CocoFiles
    for_evaluation: bool
    num_classes: int | None


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE", help="check the data sets of a config")
    source.add_argument("--json", metavar="FILE", help="check these annotations")
    parser.add_argument("--images", metavar="FOLDER", help="images of --json")
    parser.add_argument("--num-classes", type=int, help="of the model, with --json")
    parser.add_argument("--open-images", action="store_true", help="also decode every image")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="key=value overrides of the config")
    args = parser.parse_args(arguments)
    if args.json and not args.images:
        parser.error("--json needs --images FOLDER")
    return args


def tasks(args: argparse.Namespace) -> Iterator[Task]:
    """The data sets that the command line names.

    Raises:
        ConfigError, FileNotFoundError: of the config.
        DatasetError: a name that is not registered.
    """
    if args.json:
        files = CocoFiles(args.json, args.images, has_file_names=True)
        yield Task(args.json, files, False, args.num_classes)
        return
    cfg = load_config(args.config_file, args.opts)
    for name, for_evaluation in dataset_names(cfg):
        found = coco_files(name)
        if found is None:
            print(f"{name}: not in COCO's format, not checked\n")
        else:
            yield Task(name, found, for_evaluation, model_classes(cfg))


def check(task: Task, *, open_images: bool) -> str:
    """Check a data set and show what it holds; returns its faults, or "" where there are none."""
    files = task.files
    try:
        validate_coco(
            files.json_file,
            files.image_root,
            name=task.name,
            for_evaluation=task.for_evaluation,
            num_classes=task.num_classes,
            has_file_names=files.has_file_names,
        )
        if open_images and files.has_file_names:
            check_image_files(files.json_file, files.image_root)
    except (DatasetError, FileNotFoundError) as error:
        return str(error)
    survey = survey_coco(files.json_file, num_classes=task.num_classes)
    print(f"{task.name}: no faults")
    for name, count in survey.counts.items():
        print(f"  {count:>9,} {name}")
    for sentence in survey.advice:
        print(f"  look at: {sentence}")
    print()
    return ""


def class_fault(checked: Sequence[Task]) -> str:
    """Where two data sets of a config number their classes differently, what differs."""
    for task in checked[1:]:
        first, other = class_names(checked[0].files.json_file), class_names(task.files.json_file)
        for index, (one, two) in enumerate(zip(first, other, strict=False)):
            if one != two:
                return (
                    f"class {index} is {one!r} in {checked[0].name} but {two!r} in {task.name}: "
                    "give both files the same categories with the same ids"
                )
        if len(first) != len(other):
            return (
                f"{checked[0].name} has {len(first)} categories, {task.name} {len(other)}: give "
                "both files the same categories with the same ids"
            )
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    faults, good = [], []
    try:
        for task in tasks(args):
            fault = check(task, open_images=args.open_images)
            if fault:
                faults.append(fault)
            else:
                good.append(task)
    except (ConfigError, DatasetError, FileNotFoundError) as error:
        faults.append(str(error))
    faults += [fault for fault in [class_fault(good)] if fault]
    if faults:
        sys.exit("\n\n".join(f"error: {fault}" for fault in faults))


if __name__ == "__main__":
    main()
