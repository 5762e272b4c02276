"""Draw the detections of a COCO results file (left) beside the annotations (right).

Example:
    tokendetr visualize-results --dataset shapes_val --output output/compared \\
        --input output/dino_shapes/coco_instances_results.json
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from tokendetr.cli.argument_types import output_folder, positive_int, share
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.data.builtin_datasets import register_if_known
from tokendetr.io.images import save_image
from tokendetr.io.outputs import drawing_names
from tokendetr.io.progress import Progress
from tokendetr.io.results import read_results
from tokendetr.predict import read_rgb
from tokendetr.visualization.boxes import annotated_boxes, draw_boxes, found_boxes, legible_scale


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("--input", required=True, help="JSON file of COCO results")
    parser.add_argument("--output", type=output_folder, required=True, help="folder to write")
    parser.add_argument("--dataset", default="coco_2017_val", help="registered data set")
    parser.add_argument("--conf-threshold", type=share, default=0.5, help="lowest score drawn")
    parser.add_argument("--num", type=positive_int, help="images to draw (default: all)")
    return parser.parse_args(arguments)


def to_instances(
    records: list[dict[str, Any]], size: tuple[int, int], metadata: Any, threshold: float
) -> Instances:
    """Return the records with at least the threshold's score as detectron2 instances.

    Raises:
        KeyError: a category that the data set does not have.
    """
    to_class = metadata.get("thing_dataset_id_to_contiguous_id", None)
    kept = [record for record in records if record["score"] >= threshold]
    unknown = {r["category_id"] for r in kept} - set(to_class) if to_class else set()
    if unknown:
        raise KeyError(f"the data set {metadata.name!r} has no categories {sorted(unknown)}")
    boxes = np.array([record["bbox"] for record in kept], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = [record["category_id"] for record in kept]
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.from_numpy(boxes))
    instances.scores = torch.tensor([float(record["score"]) for record in kept])
    instances.pred_classes = torch.tensor(
        [to_class[number] if to_class else number for number in classes], dtype=torch.long
    )
    return instances


def compare(args: argparse.Namespace) -> int:
    """Write a drawing for each image of the data set with results; return their number."""
    by_image: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for result in read_results(args.input):
        by_image[result["image_id"]].append(result)
    register_if_known(args.dataset)
    if args.dataset not in DatasetCatalog.list():
        raise KeyError(f"no data set is registered as {args.dataset!r}: {DatasetCatalog.list()}")
    records = [r for r in DatasetCatalog.get(args.dataset) if r["image_id"] in by_image]
    if not records:
        raise ValueError(f"{args.input} has no results for images of {args.dataset}")
    metadata = MetadataCatalog.get(args.dataset)
    shown = records[: args.num]
    targets = drawing_names([Path(record["file_name"]) for record in shown], args.output, ".jpg")
    for record, target in Progress(list(zip(shown, targets, strict=True)), unit="image"):
        path = Path(record["file_name"])
        image_HWC = read_rgb(path)
        found = to_instances(
            by_image[record["image_id"]], image_HWC.shape[:2], metadata, args.conf_threshold
        )
        names = metadata.get("thing_classes", None)
        scale = legible_scale(image_HWC)
        truth = annotated_boxes(record.get("annotations", ()), names)
        drawn = [
            np.asarray(draw_boxes(image_HWC, boxes, scale=scale))
            for boxes in (found_boxes(found, names), truth)
        ]
        both = np.concatenate(drawn, axis=1)
        save_image(Image.fromarray(both), target, quality=92)
    return len(shown)


@program(KeyError, ValueError)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    count = compare(args)
    print(f"{count} images in {args.output}: predictions left, annotations right")


if __name__ == "__main__":
    main()
