"""PASCAL VOC: XML annotations and lists of image ids."""

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import partial
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

__all__ = ["CLASS_NAMES", "load_voc_instances", "register_pascal_voc"]

_DIFFICULT = ("1", "true", "yes")
_NOT_DIFFICULT = ("", "0", "false", "no", "unspecified")

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def load_voc_instances(
    dirname: str, split: str, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Read the boxes of a VOC split.

    Args:
        dirname: folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: name of a list under ``ImageSets/Main``: train, val, trainval, test.
        class_names: the classes in the order of their ids.

    Returns:
        One record per image, in the list's order; ``image_id`` is VOC's string id.

    Raises:
        FileNotFoundError: the list or an annotation does not exist.
        ValueError: an annotation is not VOC XML, names an unknown class or has an invalid box; an
            id of the list is not a file name.
    """
    list_file = os.path.join(dirname, "ImageSets", "Main", split + ".txt")
    with PathManager.open(list_file) as file:
        image_ids = [line.split()[0] for line in file if line.strip()]
    annotation_dir = PathManager.get_local_path(os.path.join(dirname, "Annotations"))
    return [
        _read_record(dirname, annotation_dir, image_id, list(class_names)) for image_id in image_ids
    ]


def _read_record(
    dirname: str, annotation_dir: str, image_id: str, class_names: list[str]
) -> dict[str, Any]:
    if os.path.basename(image_id) != image_id or "\\" in image_id or image_id in ("", ".", ".."):
        raise ValueError(f"the id {image_id!r} in the list of {dirname} is not a file name")
    annotation_file = os.path.join(annotation_dir, image_id + ".xml")
    with PathManager.open(annotation_file) as file:
        try:
            root = ElementTree.parse(file).getroot()
            return {
                "file_name": os.path.join(dirname, "JPEGImages", image_id + ".jpg"),
                "image_id": image_id,
                "height": _pixels(root, "size/height"),
                "width": _pixels(root, "size/width"),
                "annotations": [_read_object(o, class_names) for o in root.findall("object")],
            }
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(
                f"Cannot read the VOC annotation '{annotation_file}': {error}"
            ) from error


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None:
        raise ValueError(f"<{element.tag}> has no '{path}'")
    return found.strip()


def _pixels(element: ElementTree.Element, path: str) -> int:
    number = int(_text(element, path))
    if number < 1:
        raise ValueError(f"{path} is {number}: it must be at least 1")
    return number


def _read_object(element: ElementTree.Element, class_names: list[str]) -> dict[str, Any]:
    name = _text(element, "name")
    if name not in class_names:
        raise ValueError(f"object class '{name}' is not among the {len(class_names)} class names")
    xmin, ymin, xmax, ymax = (
        float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))) or xmax < xmin or ymax < ymin:
        raise ValueError(
            f"the box of an object '{name}' is empty: xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, "
            f"ymax {ymax:g}"
        )
    _is_difficult(element)
    # VOC counts pixels from 1 and includes the last one; [xmin - 1, xmax] are the pixels' edges.
    return {
        "category_id": class_names.index(name),
        "bbox": [xmin - 1.0, ymin - 1.0, xmax, ymax],
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def _is_difficult(element: ElementTree.Element) -> bool:
    """Return True for an object marked as difficult; no mark and "Unspecified" mean False.

    Raises:
        ValueError: the mark is another word.
    """
    word = (element.findtext("difficult") or "").strip().lower()
    if word in _NOT_DIFFICULT:
        return False
    if word not in _DIFFICULT:
        raise ValueError(f"<difficult> is {word[:40]!r}, not 0 or 1")
    return True


def register_pascal_voc(
    name: str,
    dirname: str,
    split: str,
    year: int,
    class_names: Sequence[str] = CLASS_NAMES,
) -> None:
    """Register a VOC split.

    Args:
        name: the name used in configs.
        dirname: folder of that year's data.
        split: name of the list of images.
        year: 2007 or 2012; decides how AP is computed.
        class_names: the classes in the order of their ids.
    """
    DatasetCatalog.register(name, partial(load_voc_instances, dirname, split, class_names))
    MetadataCatalog.get(name).set(
        thing_classes=list(class_names), dirname=dirname, year=year, split=split
    )
