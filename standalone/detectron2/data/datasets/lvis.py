"""LVIS-format JSON. Categories are read from the file itself."""

import logging
import os
from functools import partial
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets._annotations import read_annotations
from detectron2.data.datasets.coco import local_annotation_file
from detectron2.structures import BoxMode
from fvcore.common.timer import Timer

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]

logger = logging.getLogger(__name__)


def register_lvis_instances(
    name: str, metadata: dict[str, Any], json_file: str, image_root: str
) -> None:
    """Register a data set in LVIS's format.

    Args:
        name: the name used in configs.
        metadata: extra metadata; may be empty.
        json_file: path of the JSON.
        image_root: folder of the images.
    """
    DatasetCatalog.register(name, partial(load_lvis_json, json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata
    )


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """Return the class names of a registered LVIS data set, read from its annotation file.

    Args:
        dataset_name: a name given to :func:`register_lvis_instances`.

    Returns:
        ``thing_classes`` (first synonym of each category, by id) and ``class_image_count`` (``id``
        and ``image_count`` of each category, if the file has them).

    Raises:
        ValueError: the name is not a registered LVIS data set.
        FileNotFoundError: its file does not exist.
    """
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if json_file is None:
        raise ValueError(
            f"{dataset_name} is not registered as an LVIS data set, so it has no categories"
        )
    return _categories_to_meta(_read_json(json_file)["categories"], json_file)


def _categories_to_meta(categories: list[dict[str, Any]], json_file: str) -> dict[str, Any]:
    categories = sorted(categories, key=lambda category: category["id"])
    ids = [category["id"] for category in categories]
    if ids != list(range(1, len(ids) + 1)):
        raise ValueError(
            f"Category ids in '{json_file}' are not in [1, #categories], as LVIS has them."
        )
    meta: dict[str, Any] = {
        "thing_classes": [(c.get("synonyms") or [c.get("name")])[0] for c in categories]
    }
    if all("image_count" in category for category in categories):
        meta["class_image_count"] = [
            {"id": category["id"], "image_count": category["image_count"]}
            for category in categories
        ]
    return meta


def _read_json(json_file: str) -> dict[str, Any]:
    path = local_annotation_file(json_file)
    found = read_annotations(path, f"'{json_file}'", has_file_names=False)
    if found.note():
        logger.info("%s: %s", json_file, found.note())
    if found.strays:
        raise ValueError(f"'{json_file}': {found.strays[0]}")
    return found.data


def load_lvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Read an LVIS JSON.

    Args:
        json_file: path of the JSON.
        image_root: folder of the images; COCO's for LVIS.
        dataset_name: data set whose metadata receive the class names; None keeps the category ids
            of the file minus one.
        extra_annotation_keys: further keys to take over from each annotation.

    Returns:
        One record per image, ordered by image id, with ``not_exhaustive_category_ids`` and
        ``neg_category_ids`` besides the usual fields.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not valid LVIS JSON, or records cannot be used; they are named.
    """
    timer = Timer()
    content = _read_json(json_file)
    if timer.seconds() > 1:
        logger.info("Loading %s takes %.2f seconds.", json_file, timer.seconds())
    meta = _categories_to_meta(content["categories"], json_file)
    if dataset_name is not None:
        MetadataCatalog.get(dataset_name).set(**meta)
    annotations = content.get("annotations", [])
    records: dict[int, dict[str, Any]] = {}
    for image in sorted(content["images"], key=lambda image: image["id"]):
        records[image["id"]] = _image_record(image, image_root)
    keys = extra_annotation_keys or []
    for annotation in annotations:
        converted = _instance(annotation)
        converted.update({key: annotation[key] for key in keys})
        records[annotation["image_id"]]["annotations"].append(converted)
    logger.info("%d images are in %s, in LVIS' format", len(records), json_file)
    return list(records.values())


def _image_record(image: dict[str, Any], image_root: str) -> dict[str, Any]:
    return {
        "file_name": os.path.join(image_root, image["file_name"]),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
        "neg_category_ids": image.get("neg_category_ids", []),
        "annotations": [],
    }


def _instance(annotation: dict[str, Any]) -> dict[str, Any]:
    instance = {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": annotation["category_id"] - 1,
    }
    if "segmentation" in annotation:
        instance["segmentation"] = annotation["segmentation"]
    return instance
