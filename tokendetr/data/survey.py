"""Summarize a COCO-format data set, and point out what deserves a look before training."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager

from tokendetr.data.coco_check import read_coco
from tokendetr.errors import DatasetError

__all__ = ["Survey", "check_image_files", "survey_coco"]

_SHOWN = 5
_TINY_PX = 1.0


@dataclass(frozen=True)
class Survey:
    """Summary of a data set.

    Attributes:
        counts: name -> number, in display order.
        advice: a sentence for each thing that may be wrong; none of them prevents loading.
    """

    counts: Mapping[str, int]
    advice: Sequence[str]


def survey_coco(
    json_file: str, *, num_classes: int | None = None, has_file_names: bool = True
) -> Survey:
    """Summarize a valid data set.

    Args:
        json_file: annotations that :func:`tokendetr.data.validate.validate_coco` accepts.
        num_classes: number of classes of the model, if known.
        has_file_names: False for LVIS, whose file names come from URLs.
    """
    data = read_coco(json_file, has_file_names=has_file_names)
    images, annotations = data["images"], data.get("annotations", [])
    crowds = [a for a in annotations if a.get("iscrowd")]
    tiny = [a for a in annotations if min(a["bbox"][2:]) < _TINY_PX]
    with_boxes = {a["image_id"] for a in annotations if not a.get("iscrowd")}
    boxes = Counter((a["image_id"], a["category_id"], tuple(a["bbox"])) for a in annotations)
    repeated = [key for key, times in boxes.items() if times > 1]
    counts = {
        "images": len(images),
        "images without boxes": sum(image["id"] not in with_boxes for image in images),
        "boxes": len(annotations) - len(crowds),
        "crowds": len(crowds),
        f"boxes less than {_TINY_PX:g} pixel wide or high": len(tiny),
        "boxes that repeat another": sum(boxes[key] - 1 for key in repeated),
        "categories": len(data["categories"]),
    }
    advice = [*_category_advice(data, num_classes), *_image_advice(data, len(with_boxes))]
    if repeated:
        first = sorted({str(image_id) for image_id, _, _ in repeated})
        advice.append(
            f"the same box of the same category occurs more than once in {_some(first, 'image')}: "
            "remove the copies"
        )
    if tiny:
        advice.append(
            f"{_some([str(a['id']) for a in tiny], 'annotation')}: boxes less than {_TINY_PX:g} "
            "pixel wide or high train nothing; remove them if they are mistakes"
        )
    return Survey(counts, advice)


def _category_advice(data: Mapping[str, Any], num_classes: int | None) -> Iterator[str]:
    categories = sorted(data["categories"], key=lambda category: category["id"])
    ids, names = [c["id"] for c in categories], [str(c.get("name")) for c in categories]
    if ids != list(range(1, len(ids) + 1)):
        yield (
            f"category ids are not 1 to {len(ids)}: they are mapped to classes 0 to "
            f"{len(ids) - 1} in order of id, so training and test files need the same ids"
        )
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        yield f"{_some(twice, 'category name')} more than once: merge these categories"
    used = {a["category_id"] for a in data.get("annotations", [])}
    unused = [name for category_id, name in zip(ids, names, strict=True) if category_id not in used]
    if unused and data.get("annotations"):
        yield f"{_some(unused, 'category')} without boxes"
    if num_classes is not None and num_classes > len(ids):
        yield (
            f"the model has num_classes={num_classes} for {len(ids)} categories: "
            f"set model.num_classes={len(ids)}"
        )


def _image_advice(data: Mapping[str, Any], with_boxes: int) -> Iterator[str]:
    names = Counter(str(image.get("file_name", image["id"])) for image in data["images"])
    twice = sorted(name for name, times in names.items() if times > 1)
    if twice:
        yield f"{_some(twice, 'file')} more than once: evaluation counts its boxes as often"
    if all(annotation.get("iscrowd") for annotation in data.get("annotations", [])):
        what = "crowds alone" if data.get("annotations") else "no annotations"
        yield f"there are {what}: it cannot be trained on, and its AP is not defined"
    elif 2 * with_boxes < len(data["images"]):
        yield (
            "most images have no boxes: training leaves them out unless "
            "dataloader.train.dataset.filter_empty=False"
        )


def check_image_files(json_file: str, image_root: str, *, has_file_names: bool = True) -> None:
    """Decode every image as the loaders do, and compare its size with the annotated one.

    Args:
        json_file: annotations that :func:`tokendetr.data.validate.validate_coco` accepts.
        image_root: folder of the images.
        has_file_names: False for LVIS, whose file names come from URLs.

    Raises:
        DatasetError: images are faulty; the message names the first twenty.
    """
    faults = []
    root = PathManager.get_local_path(image_root)
    for image in read_coco(json_file, has_file_names=has_file_names)["images"]:
        path = os.path.join(root, image["file_name"])
        try:
            height, width = utils.read_image(path, format="RGB").shape[:2]
        except (OSError, ValueError) as error:
            faults.append(f"image id {image['id']} ({image['file_name']}) cannot be read: {error}")
            continue
        if (width, height) != (image["width"], image["height"]):
            faults.append(
                f"image id {image['id']} ({image['file_name']}) has {width} x {height} pixels, "
                f"the annotations say {image['width']} x {image['height']}"
            )
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:20])
        more = f"\n  ... and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise DatasetError(f"{json_file}: {len(faults)} images are faulty:\n{listed}{more}")


def _some(names: Sequence[str], kind: str) -> str:
    """Return a count with the first few names, such as ``2 files (a, b)``."""
    more = ", ..." if len(names) > _SHOWN else ""
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    shown = kind if len(names) == 1 else plural
    return f"{len(names)} {shown} ({', '.join(names[:_SHOWN])}{more})"
