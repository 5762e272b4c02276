"""COCO-format JSON: loading, registration, and conversion of other data sets to it."""

import contextlib
import datetime
import io
import json
import logging
import os
from functools import partial
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets._annotations import read_annotations
from detectron2.structures import Boxes, BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager
from fvcore.common.timer import Timer
from iopath.common.file_io import file_lock
from pycocotools.coco import COCO

__all__ = [
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "register_coco_instances",
]

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[Record]:
    """Read the instance annotations of a COCO-format file.

    Args:
        json_file: path of the JSON.
        image_root: folder to which the images' ``file_name`` are relative.
        dataset_name: data set whose metadata receive ``thing_classes`` and
            ``thing_dataset_id_to_contiguous_id``; category ids then become 0, 1, ... in order. None
            keeps the ids of the file.
        extra_annotation_keys: further keys to take over from each annotation.

    Returns:
        One record per image, ordered by image id: ``file_name``, ``height``, ``width``,
        ``image_id`` and ``annotations`` with ``iscrowd``, ``bbox`` (XYWH_ABS), ``category_id`` and,
        if they can be read, ``segmentation`` and ``keypoints``.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: the file is not COCO JSON, or records cannot be used; they are named.
        ValueError: ``dataset_name`` belongs to a data set with other classes.
    """
    timer = Timer()
    coco = read_coco_api(json_file)
    if timer.seconds() > 1:
        logger.info("Loading %s takes %.2f seconds.", json_file, timer.seconds())
    id_map = None
    if dataset_name is not None:
        id_map = _register_categories(coco, json_file, dataset_name)
    image_ids = sorted(coco.imgs)
    logger.info("%d images are in %s, in COCO's format", len(image_ids), json_file)
    keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or [])]
    records = []
    for image_id in image_ids:
        image = coco.imgs[image_id]
        record = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
            "annotations": [_record(raw, keys, id_map) for raw in coco.imgToAnns[image_id]],
        }
        records.append(record)
    return records


def _record(raw: dict[str, Any], keys: list[str], id_map: dict[Any, int] | None) -> Record:
    """Convert an annotation to detectron2's form; unreadable masks were removed before."""
    annotation = {key: raw[key] for key in keys if key in raw}
    annotation["bbox_mode"] = BoxMode.XYWH_ABS
    segmentation = raw.get("segmentation")
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    if segmentation:
        annotation["segmentation"] = segmentation
    if annotation.get("keypoints"):
        annotation["keypoints"] = _shift_keypoints(annotation["keypoints"])
    if id_map is not None:
        annotation["category_id"] = id_map[raw["category_id"]]
    return annotation


def local_annotation_file(json_file: str) -> str:
    """Return the local path of an annotation file.

    Raises:
        FileNotFoundError: no such file.
    """
    path = PathManager.get_local_path(json_file)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"The annotation file '{json_file}' does not exist. Data sets are looked up under the "
            "folder in the environment variable DETECTRON2_DATASETS, by default ./datasets."
        )
    return path


def read_coco_api(json_file: str) -> COCO:
    """Open a COCO JSON with pycocotools, without its messages on stdout.

    Raises:
        FileNotFoundError: no such file.
        AnnotationError: the file is not JSON, not laid out as COCO's, or has records that cannot
            be used.
    """
    path = local_annotation_file(json_file)
    # The "minival" files of the early COCO releases are known to repeat ids.
    found = read_annotations(path, f"'{json_file}'", unique_ids="minival" not in json_file)
    if found.note():
        logger.info("%s: %s", json_file, found.note())
    if found.strays:
        logger.warning(
            "%s contains %d annotations of images that it does not have; they are left out (%s).",
            json_file,
            len(found.strays),
            found.strays[0],
        )
    coco = COCO()
    coco.dataset = found.data
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _register_categories(coco: COCO, json_file: str, dataset_name: str) -> dict[Any, int]:
    """Put the class names into the metadata; returns category id -> contiguous id.

    Raises:
        ValueError: the name belongs to a data set with other classes.
    """
    category_ids = sorted(coco.getCatIds())
    metadata = MetadataCatalog.get(dataset_name)
    names = [category["name"] for category in coco.loadCats(category_ids)]
    known = metadata.get("thing_classes")
    if known is not None and list(known) != names:
        raise ValueError(
            f"'{json_file}' has {len(names)} classes ({', '.join(names[:3])}, ...), but "
            f"'{dataset_name}' is the name of a data set with {len(known)} classes "
            f"({', '.join(known[:3])}, ...): register your own name with register_coco_instances."
        )
    metadata.thing_classes = names
    contiguous = category_ids == list(range(1, len(category_ids) + 1))
    if not contiguous and "coco" not in dataset_name:
        logger.warning(
            "The category ids are not 1, 2, ...: they are mapped to 0, 1, ..., in their order."
        )
    id_map = {category_id: index for index, category_id in enumerate(category_ids)}
    metadata.thing_dataset_id_to_contiguous_id = id_map
    return id_map


def _shift_keypoints(keypoints: list[float]) -> list[float]:
    """Move x and y from COCO's pixel indices (centers at integers) to continuous coordinates."""
    return [value if i % 3 == 2 else value + 0.5 for i, value in enumerate(keypoints)]


def register_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str, image_root: str
) -> None:
    """Register a data set in COCO's format for detection, segmentation or keypoints.

    Args:
        name: the name used in configs.
        metadata: extra metadata; may be empty.
        json_file: path of the JSON.
        image_root: folder of the images.
    """
    assert isinstance(name, str), name
    assert isinstance(json_file, (str, os.PathLike)), json_file
    assert isinstance(image_root, (str, os.PathLike)), image_root
    DatasetCatalog.register(name, partial(load_coco_json, str(json_file), str(image_root), name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """Convert a registered data set of any format to a COCO dict.

    Category ids become those of the original file if the metadata have them.
    """
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    id_map = metadata.get("thing_dataset_id_to_contiguous_id")
    original_id = {} if id_map is None else {new: old for old, new in id_map.items()}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, record in enumerate(records):
        image_id = record.get("image_id", index)
        images.append(
            {
                "id": image_id,
                "width": int(record["width"]),
                "height": int(record["height"]),
                "file_name": str(record["file_name"]),
            }
        )
        for annotation in record.get("annotations", []):
            converted = _to_coco_annotation(annotation)
            category = annotation["category_id"]
            converted["id"] = len(annotations) + 1
            converted["image_id"] = image_id
            converted["category_id"] = int(original_id.get(category, category))
            annotations.append(converted)
    categories = [
        {"id": original_id.get(i, i), "name": name} for i, name in enumerate(metadata.thing_classes)
    ]
    logger.info("Conversion finished, #images: %d, #annotations: %d", len(images), len(annotations))
    info = {
        "date_created": str(datetime.datetime.now()),
        "description": "Written from a registered data set.",
    }
    return {
        "info": info,
        "images": images,
        "categories": categories,
        "licenses": None,
        "annotations": annotations,
    }


def _to_coco_annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    xywh = BoxMode.convert([float(v) for v in box], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    area = float(Boxes([list(map(float, box))]).area()[0])
    converted: dict[str, Any] = {"iscrowd": int(annotation.get("iscrowd", 0))}
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        area = float(PolygonMasks([segmentation]).area()[0])
        converted["segmentation"] = [np.asarray(p, dtype=float).tolist() for p in segmentation]
    elif isinstance(segmentation, dict):
        area = float(mask_util.area(segmentation))
        counts = segmentation["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        converted["segmentation"] = {**segmentation, "counts": text}
    elif segmentation is not None:
        raise TypeError(
            f"A segmentation is polygons or an RLE, not a {type(segmentation).__name__}"
        )
    keypoints = annotation.get("keypoints")
    if keypoints is not None:
        flat = [float(v) - (0.0 if i % 3 == 2 else 0.5) for i, v in enumerate(keypoints)]
        converted["keypoints"] = flat
        converted["num_keypoints"] = sum(v > 0 for v in flat[2::3])
    converted["area"] = area
    converted["bbox"] = [round(float(v), 3) for v in xywh]
    return converted


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered data set as a COCO JSON.

    Args:
        dataset_name: a registered name.
        output_file: path of the JSON.
        allow_cached: keep an existing file.
    """
    PathManager.mkdirs(os.path.dirname(output_file) or ".")
    with file_lock(output_file):
        if PathManager.exists(output_file) and allow_cached:
            logger.warning(
                "Using previously cached COCO format annotations at '%s'. You need to clear the "
                "cache file if your dataset has been modified.",
                output_file,
            )
            return
        logger.info("Converting annotations of dataset '%s' to COCO format ...", dataset_name)
        coco_dict = convert_to_coco_dict(dataset_name)
        partial_file = output_file + ".tmp"
        with PathManager.open(partial_file, "w") as file:
            json.dump(coco_dict, file)
        PathManager.mv(partial_file, output_file)
