"""Convert a folder of Pascal VOC or YOLO labels to COCO JSON, and check the result.

Examples:
    tokendetr convert --input BCCD_Dataset/BCCD --output datasets/bccd --names RBC WBC Platelets
    tokendetr convert --input fruit --output fruit_coco --val-share 0.1

Writes one JSON per split. Splits are the lists of VOC's ImageSets/Main, or folders named train, val
(or valid) and test; a folder without splits is split at random with a fixed seed. Images stay where
they are. If a file cannot be read, an image is missing, or an output exists already, an error names
the file and nothing is written.
"""

import argparse
from collections.abc import Sequence

from tokendetr.cli.argument_types import output_folder
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.data.convert import convert_folder


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("--input", required=True, metavar="FOLDER", help="labels and images")
    parser.add_argument(
        "--output",
        type=output_folder,
        required=True,
        metavar="FOLDER",
        help="folder for <split>.json",
    )
    parser.add_argument(
        "--format",
        choices=("auto", "voc", "yolo"),
        default="auto",
        help="format of the labels (default: recognized)",
    )
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="CLASS", help="order of VOC's classes"
    )
    parser.add_argument(
        "--splits", nargs="+", default=[], metavar="NAME", help="splits to write (default: all)"
    )
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.2,
        help="validation share of a folder without splits (0.2)",
    )
    parser.add_argument(
        "--skip-images", action="store_true", help="do not open every image to compare its size"
    )
    return parser.parse_args(arguments)


@program(ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    files = convert_folder(
        args.input,
        args.output,
        kind=args.format,
        names=args.names,
        splits=args.splits,
        val_share=args.val_share,
        open_images=not args.skip_images,
    )
    for file in files:
        print(f"{file.json_file}: {file.num_images:,} images, {file.num_boxes:,} boxes")
    print(f"classes: {', '.join(files[0].names)}; images: {files[0].image_root}")


if __name__ == "__main__":
    main()
