"""Generate the shapes data set (``shapes_train``, ``shapes_val``) unless it exists.

Example:
    tokendetr make-shapes     # into $DETECTRON2_DATASETS/shapes, else ./datasets/shapes
    tokendetr make-shapes --root /tmp/shapes --train-images 500 --val-images 50 --seed 7
"""

from __future__ import annotations

import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tokendetr.cli.argument_types import positive_int
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.data.shapes import ShapesSpec, ensure_shapes, shapes_root


@program(BrokenProcessPool, ValueError)
def main() -> None:
    """Parse the command line, generate the files, and print their folder and statistics."""
    parser = described_parser(__doc__)
    parser.add_argument("--root", type=Path, help=f"folder to write (default {shapes_root()})")
    for name, count in (("train", ShapesSpec.num_train), ("val", ShapesSpec.num_val)):
        parser.add_argument(
            f"--{name}-images",
            type=positive_int,
            default=count,
            help=f"images of shapes_{name} (default {count})",
        )
    parser.add_argument(
        "--seed",
        type=int,
        default=ShapesSpec.seed,
        help=f"seed of the images (default {ShapesSpec.seed})",
    )
    parser.add_argument("--workers", type=positive_int, help="processes (default one per core)")
    args = parser.parse_args()
    spec = ShapesSpec(num_train=args.train_images, num_val=args.val_images, seed=args.seed)
    root = ensure_shapes(args.root, spec, args.workers)
    print(f"shapes data set in {root}")
    print(json.dumps(json.loads((root / "summary.json").read_text())["splits"], indent=2))


if __name__ == "__main__":
    main()
