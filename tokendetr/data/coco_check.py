"""Validate one COCO-format data set: its records, and that every image file exists."""

import codecs
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.utils.file_io import PathManager

from tokendetr.compat.stand_ins import is_stand_in
from tokendetr.data.paths import Folders
from tokendetr.errors import DatasetError
from tokendetr.io.annotation_checks import federated_faults, require_evaluable
from tokendetr.io.annotations import (
    FOR_EVALUATION,
    AnnotationError,
    Annotations,
    normalize,
    parse_json,
)

__all__ = ["read_coco", "validate_coco"]

logger = logging.getLogger(__name__)

_TOLERANCE_PX = 2.0


def validate_coco(
    json_file: str,
    image_root: str,
    *,
    name: str = "",
    for_evaluation: bool = False,
    for_training: bool = False,
    num_classes: int | None = None,
    has_file_names: bool = True,
    needs_masks: bool = False,
    needs_polygons: bool = False,
    image_roots: Sequence[str] = (),
    remedy: str = "Correct them, or set train.validate_data=warn to continue regardless.",
) -> None:
    """Validate a COCO-format data set: the JSON's records, and that every image file exists.

    Checked are: layout of the JSON; repeated ids; image sizes; file names that leave ``image_root``
    (absolute, ``..``, through a symbolic link); missing image files; annotations of unknown images
    or categories; boxes that are not four finite numbers, are inverted, or extend more than 2
    pixels outside their image; categories that share a name; more categories than ``num_classes``.
    What loaders fill in or drop (``area``, ``iscrowd``, unreadable masks, boxes without area) is
    logged in one line; beside a real detectron2, whose loader and evaluator do neither, it is
    refused. Images are not opened.

    Args:
        json_file: the annotations.
        image_root: folder of the images.
        name: the data set's name, for messages.
        for_evaluation: also refuse annotation id 0, which COCO's evaluation takes for "no match",
            and images and categories without the fields that LVIS's evaluation needs.
        for_training: also refuse a file without any box to train on.
        num_classes: number of classes of the model.
        has_file_names: False for LVIS, whose file names come from URLs.
        needs_masks: also refuse annotations without a readable mask.
        needs_polygons: also refuse run-length masks of annotations that are not crowds.
        image_roots: further folders that symbolic links may lead to.
        remedy: last line of the error.

    Raises:
        FileNotFoundError: annotations or image folder do not exist; the message says where they
            were looked for.
        DatasetError: all other faults; the message lists up to 20.
    """
    label = f"data set {name!r} ({json_file})" if name else json_file
    found = _read(json_file, label, has_file_names)
    data, faults = found.data, found.faults
    faults += found.strays + _class_faults(data, num_classes)
    faults += _unread_upstream(found, json_file, only_training=for_training and not for_evaluation)
    faults += _file_faults(json_file, data["images"], image_root, image_roots)
    faults += [] if has_file_names else _numbering_faults(data)
    faults += _box_faults(data, label)
    if needs_masks:
        faults += [f"{which}: it has no segmentation that can be read" for which in
                   found.without_mask]  # fmt: skip
    if needs_polygons:
        faults += _run_length_faults(data.get("annotations", []))
    if for_training and not any(not a["iscrowd"] for a in data.get("annotations", [])):
        faults.append("there are no boxes to train on")
    if for_evaluation and data.get("annotations"):
        faults += [] if has_file_names else federated_faults(data)
        try:
            require_evaluable(data, label)
        except AnnotationError as error:
            faults.append(str(error).removeprefix(f"{label}: "))
    try:
        found.check(label, remedy)
    except AnnotationError as error:
        raise DatasetError(str(error)) from error
    if found.note():
        logger.warning("%s: %s", label, found.note())


def _unread_upstream(found: Annotations, json_file: str, *, only_training: bool) -> list[str]:
    """Return a sentence if this project's reader puts right what the installed detectron2 does not.

    Args:
        found: the annotations.
        json_file: their file.
        only_training: nothing evaluates on them.
    """
    if is_stand_in("detectron2"):
        return []
    changed = [
        f"{count} {what}"
        for what, count in found.filled.items()
        if not (only_training and what in FOR_EVALUATION)
    ]
    with PathManager.open(json_file, "rb") as file:
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            changed.append("byte-order mark at its start: it is skipped")
    if not changed:
        return []
    return [
        f"{'; '.join(changed)}. The installed detectron2 fails on these; `tokendetr check-data "
        "--json FILE --images FOLDER --write NEW_FILE` writes a file that it reads"
    ]


def read_coco(json_file: str, *, has_file_names: bool = True) -> dict[str, Any]:
    """Read a COCO JSON, normalized by :mod:`tokendetr.io.annotations`.

    Args:
        json_file: the annotations.
        has_file_names: False for LVIS, whose file names come from URLs.

    Raises:
        FileNotFoundError: no such file; the message says where data sets are looked for.
        DatasetError: the file is not JSON, lacks COCO's layout, or has records that cannot be used.
    """
    found = _read(json_file, json_file, has_file_names)
    try:
        found.check(json_file)
    except AnnotationError as error:
        raise DatasetError(str(error)) from error
    return found.data


def _read(json_file: str, label: str, has_file_names: bool) -> Annotations:
    path = PathManager.get_local_path(json_file)
    if not os.path.isfile(path):
        root = os.environ.get("DETECTRON2_DATASETS")
        where = (
            f"DETECTRON2_DATASETS is {root!r}"
            if root
            else "DETECTRON2_DATASETS is not set, so ./datasets is used"
        )
        raise FileNotFoundError(
            f"the annotations of {label} do not exist. Built-in data sets are looked for under the "
            f"folder in the environment variable DETECTRON2_DATASETS ({where}); set it to the "
            "folder that holds coco/, or correct the path."
        )
    try:
        return normalize(parse_json(path, label), has_file_names=has_file_names)
    except AnnotationError as error:
        raise DatasetError(str(error)) from error


def _run_length_faults(annotations: Iterable[dict[str, Any]]) -> list[str]:
    """Return a sentence for each mask that a mapper of polygons cannot read."""
    return [
        f"annotation id {each['id']} of image id {each['image_id']}: its mask is of run lengths, "
        "and the mapper reads polygons (detectron2's DatasetMapper reads both with "
        "instance_mask_format=bitmask)"
        for each in annotations
        if isinstance(each.get("segmentation"), dict) and not each["iscrowd"]
    ]


def _class_faults(data: dict[str, Any], num_classes: int | None) -> list[str]:
    categories = data["categories"]
    faults: list[str] = []
    ids: dict[Any, Any] = {}
    for category in categories:
        name = category.get("name")
        if not isinstance(name, str):
            continue  # reported already
        if name in ids:
            faults.append(
                f"categories {ids[name]} and {category['id']} have the same name {name!r}: their "
                "results cannot be told apart; rename one, or give both one id"
            )
        ids.setdefault(name, category["id"])
    if num_classes is not None and len(categories) > num_classes:
        faults.append(
            f"{len(categories)} categories, but the model has num_classes={num_classes}: set "
            f"model.num_classes={len(categories)}"
        )
    return faults


def _numbering_faults(data: dict[str, Any]) -> list[str]:
    ids = sorted(category["id"] for category in data["categories"])
    if ids == list(range(1, len(ids) + 1)):
        return []
    return [f"category ids are not 1 to {len(ids)}, which LVIS's loader needs"]


def _file_faults(
    json_file: str, images: Iterable[dict[str, Any]], image_root: str, image_roots: Sequence[str]
) -> list[str]:
    """Return a sentence for each image that is missing or outside of the image root."""
    root = PathManager.get_local_path(image_root)
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"the image folder {image_root!r} of {json_file} does not exist; data sets "
            "are looked for under the environment variable DETECTRON2_DATASETS"
        )
    folders = Folders(os.path.realpath(root), image_roots)
    faults = []
    for image in images:
        name = image.get("file_name")
        fault = folders.fault(name) if isinstance(name, str) and name and "\0" not in name else ""
        if fault:
            faults.append(f"image id {image['id']} ({name}): {fault}")
    return faults


def _box_faults(data: dict[str, Any], label: str) -> list[str]:
    """Return a sentence for each box that extends outside of its image."""
    images = {image["id"]: image for image in data["images"]}
    faults, without_area = [], 0
    for annotation in data.get("annotations", []):
        x, y, width, height = annotation["bbox"]
        without_area += width == 0 or height == 0
        image = images[annotation["image_id"]]
        image_width, image_height = image.get("width"), image.get("height")
        if not isinstance(image_width, int) or not isinstance(image_height, int):
            continue  # reported already
        edge = _TOLERANCE_PX
        right, bottom = x + width - image_width, y + height - image_height
        if min(x, y) < -edge or max(right, bottom) > edge:
            faults.append(
                f"annotation id {annotation['id']} of image id {image['id']} "
                f"({image.get('file_name', 'no file name')}): bbox {annotation['bbox']} lies "
                f"outside the image of {image_width} x {image_height} pixels"
            )
    boxes = [annotation["bbox"] for annotation in data.get("annotations", [])]
    if boxes and all(x + width <= 1 and y + height <= 1 for x, y, width, height in boxes):
        faults.append(
            "every box lies within the first pixel of its image: multiply shares of the image's "
            "size by its width and height in pixels"
        )
    if without_area:
        logger.warning("%s: %d boxes have no area and are ignored", label, without_area)
    return faults
