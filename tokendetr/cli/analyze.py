"""Analyze the errors in COCO results of boxes.

Examples:
    tokendetr analyze --results output/dino_bccd/coco_instances_results.json \\
        --annotations datasets/bccd/val.json --images datasets/bccd/images --output analysis
    tokendetr analyze --results sparse.json --compare dense.json --annotations val.json --output out

Writes index.html (precision and recall, F1, confusion matrix, calibration, error types, and the
images with the most errors beside their labels), analysis.json, and classes.csv (AP by class and
size, and each class's best score threshold). With --compare, the difference to other results gets
an interval from a paired bootstrap over images.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tokendetr.cli.argument_types import non_negative_int, positive_int
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.evaluation.error_analysis import (
    Analysis,
    Comparison,
    analyze_results,
    compare_results,
)
from tokendetr.io.atomic import write_atomically
from tokendetr.io.csv_tables import csv_table
from tokendetr.io.outputs import check_output_file
from tokendetr.report import Run, write_page


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("--results", required=True, metavar="JSON", help="COCO results")
    parser.add_argument("--annotations", required=True, metavar="JSON", help="COCO annotations")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--images", metavar="FOLDER", help="images, to show the worst ones")
    parser.add_argument("--compare", metavar="JSON", help="results to compare with")
    parser.add_argument("--resamples", type=positive_int, default=1000, help="bootstrap resamples")
    parser.add_argument(
        "--worst", type=non_negative_int, default=12, help="number of images with the most errors"
    )
    args = parser.parse_args(arguments)
    if args.images and not Path(args.images).is_dir():
        parser.error(f"--images {args.images} is not a folder")
    return args


def classes_csv(analysis: Analysis) -> bytes:
    """Return the classes' rows as a CSV file."""
    return csv_table(list(analysis.classes[0]), (row.values() for row in analysis.classes))


def percent(value: float) -> str:
    """Return an AP as text, "-" where there are no boxes to measure it on."""
    return "-" if value < 0 else f"{value:.1f}"


def run_of(path: str, name: str, args: argparse.Namespace) -> Run:
    """Analyze a file of results."""
    images = Path(args.images) if args.images else Path(args.annotations).parent
    analysis = analyze_results(args.annotations, path)
    if args.images and not any((images / row["file_name"]).is_file() for row in analysis.images):
        name = analysis.images[0]["file_name"]
        raise FileNotFoundError(
            f"--images {args.images} has none of the images of {args.annotations}, such as {name}"
        )
    evaluated = f"all images of {args.annotations}"
    files = (Path(args.annotations), Path(path))
    return Run(name, {}, "", [], analysis, evaluated, images, *files)


def names_of(results: str, other: str) -> tuple[str, str]:
    """Return distinct names for two files: their stems, with their folders' names if equal."""
    first, second = Path(results), Path(other)
    if first.stem != second.stem:
        return first.stem, second.stem
    return f"{first.parent.name}/{first.stem}", f"{second.parent.name}/{second.stem}"


def analyze(args: argparse.Namespace) -> tuple[Analysis, Comparison | None]:
    """Write all files; return the analysis, and the comparison if there is one."""
    folder = Path(args.output)
    for name in ("index.html", "analysis.json", "classes.csv"):
        inputs = filter(None, (args.results, args.annotations, args.compare))
        check_output_file(str(folder / name), inputs)
    comparison = None
    runs = [run_of(args.results, Path(args.results).stem, args)]
    if args.compare:
        name, other = names_of(args.results, args.compare)
        runs = [run_of(args.compare, other, args), run_of(args.results, name, args)]
        comparison = compare_results(
            args.annotations, args.compare, args.results, resamples=args.resamples
        )
    analysis = runs[-1].analysis
    content = analysis.as_dict() | ({"comparison": asdict(comparison)} if comparison else {})
    write_atomically(str(folder / "analysis.json"), json.dumps(content, indent=1).encode())
    write_atomically(str(folder / "classes.csv"), classes_csv(analysis))
    comparisons = {runs[-1].name: comparison} if comparison else {}
    write_page(runs, folder / "index.html", worst=args.worst, comparisons=comparisons)
    return analysis, comparison


@program()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    analysis, comparison = analyze(args)
    for row in analysis.classes:
        print(
            f"{row['name']}: AP {percent(row['AP'])}, best threshold {row['threshold']:.2f} "
            f"(precision {row['precision']:.2f}, recall {row['recall']:.2f})"
        )
    if comparison is not None:
        gain = comparison.metrics["AP"]
        print(
            f"AP {percent(gain['second'])} against {percent(gain['first'])}: "
            f"{gain['difference']:+.1f} ({gain['lower']:+.1f} to {gain['upper']:+.1f})"
        )
    if count := analysis.num_images_without_detections:
        print(
            f"{count} of {analysis.num_images} images have no detection in {args.results}: if they "
            "were not evaluated (--images), give annotations without them, for all of their boxes "
            "count as missed here"
        )
    print(f"AP {percent(analysis.metrics['AP'])}; see {args.output}/index.html")


if __name__ == "__main__":
    main()
