"""Find the evaluation threshold at which a trained SPT selects a given share of the tokens.

Example:
    python tools/calibrate_selection.py --config-file spt_dino_shapes --ratio 0.4 --images 32

The first images of the config's test set are used. The last line of the output is the override to
use: ``model.backbone.evaluation_threshold=...``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from spt_backbone.calibration import calibrate_threshold, find_spt
from tokendetr.analysis.inputs import (
    load_measured_config,
    loaded_inputs,
)
from tokendetr.cli.argument_types import positive_int
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.predict import build_trained_model


@program(ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    add = parser.add_argument
    add_config_option(parser, "a detector on SPT", trained=True)
    add("--ratio", type=float, required=True, help="share of the tokens, in (0, 1)")
    add("--images", type=positive_int, default=32, help="number of images (default 32)")
    add("--tolerance", type=float, default=0.005, help="of the ratio (default 0.005)")
    add("opts", nargs=argparse.REMAINDER, help="key=value overrides of the config, at the end")
    args = parse_with_overrides(parser, arguments)
    cfg = load_measured_config(args.config_file, args.opts)
    model = build_trained_model(cfg)
    batches = list(loaded_inputs(cfg, args.images))
    found = calibrate_threshold(model, batches, args.ratio, tolerance=args.tolerance)
    strides = ", ".join(f"{ratio:.3f} at stride {s}" for s, ratio in found.by_stride.items())
    print(
        f"selected: {found.ratio:.3f} ({strides}), {found.passes} passes over {args.images} images"
    )
    place = next(name for name, module in model.named_modules() if module is find_spt(model))
    print(f"model.{place}.evaluation_threshold={found.threshold:.6g}")


if __name__ == "__main__":
    main()
