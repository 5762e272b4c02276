"""List the images of BDD100K whose objects cover less than a quarter of them: BDD-S.

Example:
    tokendetr make-bdd-s    # reads and writes datasets/bdd100k/jsons

The same for any COCO-format file:
    tokendetr make-bdd-s --input annotations.json --output small.json --max-ratio 0.1
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokendetr.cli.argument_types import output_file, share
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.data.bdd100k import SMALL_OBJECTS, bdd100k_root
from tokendetr.data.object_ratio import below_object_ratio
from tokendetr.io.annotations import AnnotationError, parse_json
from tokendetr.io.atomic import write_atomically


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("--root", help="folder of BDD100K (default: under DETECTRON2_DATASETS)")
    parser.add_argument("--input", help="one COCO-format file instead of BDD100K's two")
    parser.add_argument("--output", type=output_file, help="where its smaller version goes")
    parser.add_argument("--max-ratio", type=share, default=0.25, help="part of an image, below 1")
    args = parser.parse_args(arguments)
    if (args.input is None) != (args.output is None):
        parser.error("--input and --output belong together")
    return args


def thin_out(source: Path, target: Path, max_ratio: float) -> None:
    """Write the images of one file below a ratio into another, and say how many there are."""
    try:
        annotations = parse_json(str(source))
        small = below_object_ratio(annotations, max_ratio)
    except AnnotationError as error:
        raise ValueError(str(error)) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{source} is not a COCO-format file: {error}") from error
    write_atomically(str(target), json.dumps(small).encode())
    print(f"{target}: {len(small['images'])} of {len(annotations['images'])} images")


@program(ValueError)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    jsons = Path(args.root or bdd100k_root()) / "jsons"
    pairs = [
        (jsons / f"det_{split}_cocofmt.json", jsons / SMALL_OBJECTS.format(split=split))
        for split in ("train", "val")
    ]
    if args.input is not None:
        pairs = [(Path(args.input), Path(args.output))]
    for source, target in pairs:
        thin_out(source, target, args.max_ratio)


if __name__ == "__main__":
    main()
