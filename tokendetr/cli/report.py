"""Write an HTML report on one or more runs: settings, curves, errors, images and kept tokens.

Examples:
    tokendetr report output/dino_bccd output/sparse_dino_bccd --output report.html
    tokendetr report dino_shapes dynamic_dino_shapes --images 100 --output report.html

A run is the folder of a training, an evaluation or `tokendetr sparsify`, or the name of a config
that comes with weights. The report is one file that needs no network. If a run has no results yet,
its detector is run on the first images of the test set.
"""

import argparse
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger

from tokendetr.cli.argument_types import non_negative_int, output_file, positive_int
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.report import write_report


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or config's name")
    parser.add_argument(
        "--output", required=True, type=output_file, metavar="FILE", help="the HTML file"
    )
    parser.add_argument(
        "--device", default="cpu", help="device that detectors run on (default: cpu)"
    )
    parser.add_argument(
        "--images",
        type=positive_int,
        default=200,
        help="test images to evaluate if there are no results yet (default: 200)",
    )
    parser.add_argument(
        "--worst",
        type=non_negative_int,
        default=4,
        help="images with most errors to show for each run",
    )
    parser.add_argument("--random", type=non_negative_int, default=4, help="random images to show")
    parser.add_argument(
        "--token-images", type=non_negative_int, default=2, help="random images to show with tokens"
    )
    return parser.parse_args(arguments)


@program(KeyError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    setup_logger(name="tokendetr")
    file = write_report(
        args.runs,
        args.output,
        device=args.device,
        limit=args.images,
        worst=args.worst,
        random=args.random,
        token_images=args.token_images,
    )
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
