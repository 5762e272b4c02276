"""Export a detector for use outside of Python, and verify that the file computes the same.

Examples:
    tokendetr export --config-file dino_shapes --format onnx --size 256 256 \\
        --output dino_shapes.onnx
    tokendetr export --config-file dino_shapes --output dino_shapes.onnx --check
    tokendetr export --config-file output/dino/config.yaml --size 800 1216 \\
        --output dino.onnx train.init_checkpoint=output/dino/model_final.pth

The file is run on at least eight synthetic images (of different sizes, unless --no-padding), and
its detections must equal the model's: boxes within 0.5 pixels, scores within 1e-4. <output>.json
records the result; a file that differs is deleted. --check repeats only that, with the record that
lies beside the file. --evaluate also compares the AP on the config's test set. All of it runs on
the CPU, whatever train.device is.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokendetr.cli.argument_types import output_file, positive_int
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.config.load import load_config
from tokendetr.deploy import ExportOptions, check, export
from tokendetr.deploy.files import check_name
from tokendetr.deploy.programs import SUFFIXES
from tokendetr.evaluation.run import Evaluation
from tokendetr.predict.predictor import build_model


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    add_config_option(parser, trained=True)
    parser.add_argument("--format", choices=SUFFIXES, default="onnx", help="what to write")
    parser.add_argument(
        "--size",
        type=positive_int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="canvas in pixels; needed unless --check",
    )
    parser.add_argument(
        "--output", required=True, type=output_file, metavar="FILE", help="the exported file"
    )
    parser.add_argument("--batch", type=positive_int, default=1, help="images at once")
    parser.add_argument(
        "--no-padding",
        dest="padding",
        action="store_false",
        help="every image fills the canvas: faster, and possible for every backbone",
    )
    parser.add_argument(
        "--sampling",
        choices=("grid_sample", "gather"),
        default="grid_sample",
        help="deformable attention in onnx and openvino; gather for runtimes whose GridSample is "
        "wrong",
    )
    parser.add_argument(
        "--library",
        metavar="FILE",
        action="append",
        help="computes the node of onnx-custom in one runtime; may be repeated",
    )
    parser.add_argument("--check", action="store_true", help="only verify --output again")
    parser.add_argument(
        "--evaluate", action="store_true", help="compare the AP on the config's test set as well"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="key=value overrides, at the end")
    args = parse_with_overrides(parser, arguments)
    if not args.check and args.size is None:
        parser.error("--size HEIGHT WIDTH is needed")
    if args.check and not Path(args.output).is_file():
        parser.error(f"there is no exported file {args.output}")
    return args


def requested_options(args: argparse.Namespace) -> ExportOptions:
    """Return the command line's options of an export.

    Raises:
        ExportError: an option has a value that it cannot have, or the file another extension.
    """
    check_name(args.output, args.format)
    return ExportOptions(
        format=args.format,
        size=tuple(args.size),
        batch=args.batch,
        padding=args.padding,
        sampling=args.sampling,
    )


@program(ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    args = parse_arguments(arguments)
    options = None if args.check else requested_options(args)
    cfg = load_config(args.config_file, [*args.opts, "train.device=cpu"], trained=True)
    model = build_model(cfg)
    if args.evaluate:  # so that a test set that cannot be used is found before the export
        Evaluation(cfg, model).prepare(required=True)
    common: dict[str, Any] = {
        "library": args.library,
        "evaluate": (lambda each: Evaluation(cfg, each).box_ap()) if args.evaluate else None,
    }
    if options is None:
        record = check(model, args.output, **common)
    else:
        record = export(model, args.output, options, source=args.config_file, **common)
    for runtime, found in record["checks"].items():
        print(
            f"{args.output}: good in {runtime}: {found['detections']} detections in "
            f"{found['images']} images, boxes within {found['box_px']:.2g} px, scores within "
            f"{found['score']:.2g}"
        )


if __name__ == "__main__":
    main()
