"""Draw a data set: charts of its boxes, and samples with their labels."""

import io
import os
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from detectron2.data import detection_utils as utils
from detectron2.structures import BoxMode
from numpy.typing import NDArray

from tokendetr.data.coco_check import read_coco
from tokendetr.io.atomic import write_atomically
from tokendetr.io.images import save_image
from tokendetr.visualization.boxes import annotated_boxes, draw_boxes, legible_scale

__all__ = ["draw_samples", "draw_survey"]

_MOST_CLASSES = 30
_SAMPLES = 12


def draw_survey(json_file: str, path: Path) -> None:
    """Draw charts of a valid data set: classes, boxes per image, sizes and shapes of boxes.

    Args:
        json_file: annotations in COCO's format.
        path: the PNG file to write.
    """
    from matplotlib.figure import Figure

    data = read_coco(json_file)
    boxes = [
        a for a in data.get("annotations", []) if not a.get("iscrowd") and min(a["bbox"][2:]) > 0
    ]
    names = {category["id"]: category["name"] for category in data["categories"]}
    per_class = Counter(names[a["category_id"]] for a in boxes).most_common(_MOST_CLASSES)
    per_image = Counter({image["id"]: 0 for image in data["images"]})
    per_image.update(a["image_id"] for a in boxes)
    extent_N2 = np.array([a["bbox"][2:] for a in boxes], dtype=float).reshape(-1, 2)
    figure = Figure(figsize=(12, 7), layout="constrained")
    (classes, counts), (sizes, shapes) = figure.subplots(2, 2)
    classes.barh([name for name, _ in per_class][::-1], [count for _, count in per_class][::-1])
    classes.set(title=f"boxes per class ({len(names)} classes)")
    counts.hist(list(per_image.values()), bins=_whole_bins(max(per_image.values(), default=0)))
    counts.set(title="boxes per image", xlabel="boxes", ylabel="images")
    sizes.hist(np.sqrt(extent_N2.prod(axis=1)), bins=40)
    for side, name in ((32, "small"), (96, "medium")):
        sizes.axvline(side, color="black", linestyle=":", linewidth=1)
        sizes.annotate(f"{name} up to {side}", (side, 0.97), xycoords=("data", "axes fraction"),
                       rotation=90, va="top", ha="right", fontsize="x-small")  # fmt: skip
    sizes.set(title="size of boxes (square root of area)", xlabel="pixels", ylabel="boxes")
    shapes.scatter(*extent_N2.T, s=4, alpha=0.3)
    shapes.set(title="shape of boxes", xlabel="width in pixels", ylabel="height in pixels")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(str(path), content.getbuffer())


def _whole_bins(most: int) -> NDArray[np.float64]:
    """Return the edges of at most about 40 bins around the integers from 0 to ``most``."""
    return np.arange(0, most + 2, 1 + most // 40, dtype=np.float64) - 0.5


def draw_samples(
    json_file: str, image_root: str, folder: Path, *, has_file_names: bool = True
) -> None:
    """Draw up to twelve images with their labels, chosen at random with a fixed seed.

    Args:
        json_file: annotations in COCO's format.
        image_root: folder of the images.
        folder: folder to write to.
        has_file_names: False for LVIS, whose file names come from URLs.
    """
    data = read_coco(json_file, has_file_names=has_file_names)
    categories = sorted(data["categories"], key=lambda category: category["id"])
    index = {category["id"]: number for number, category in enumerate(categories)}
    names = [category["name"] for category in categories]
    images = data["images"]
    chosen = Random(0).sample(images, min(_SAMPLES, len(images)))
    by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in chosen}
    for annotation in data.get("annotations", []):
        if annotation["image_id"] in by_image:
            by_image[annotation["image_id"]].append(
                {
                    "bbox": annotation["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": index[annotation["category_id"]],
                }
            )
    for number, image in enumerate(chosen):
        image_HWC = utils.read_image(os.path.join(image_root, image["file_name"]), format="RGB")
        boxes = annotated_boxes(by_image[image["id"]], names)
        path = folder / f"sample_{number:02d}_{Path(image['file_name']).stem}.jpg"
        drawn = draw_boxes(image_HWC, boxes, scale=legible_scale(image_HWC))
        save_image(drawn, path, quality=90)
