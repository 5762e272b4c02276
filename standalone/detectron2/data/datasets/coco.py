"""COCO-format JSON: loading, registration, and conversion of other data sets to it."""

import contextlib
import datetime
import io
import json
import logging
import os
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from fvcore.common.timer import Timer
from iopath.common.file_io import file_lock
from pycocotools.coco import COCO

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager

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
        dataset_name: where to put ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``. None
            leaves category ids as they are in the file; otherwise they become 0, 1, ... in order.
        extra_annotation_keys: further keys to take over from each annotation.

    Returns:
        One record per image, ordered by image id: ``file_name``, ``height``, ``width``, ``image_id``
        and ``annotations`` with ``iscrowd``, ``bbox`` (XYWH_ABS), ``category_id`` and, where valid,
        ``segmentation`` and ``keypoints``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no COCO JSON, a record lacks a field, or a box is empty.
        KeyError: an annotation names a category that the file does not define.
        AssertionError: annotation ids repeat, or an annotation is marked ``ignore``.
    """
    timer = Timer()
    coco = read_coco_api(json_file)
    if timer.seconds() > 1:
        logger.info("Loading %s takes %.2f seconds.", json_file, timer.seconds())
    id_map = None
    if dataset_name is not None:
        id_map = _register_categories(coco, json_file, dataset_name)
    image_ids = sorted(coco.imgs)
    num_valid = sum(len(coco.imgToAnns[image_id]) for image_id in image_ids)
    if num_valid < len(coco.anns):
        logger.warning(
            "%s contains %d annotations, but only %d of them match to images in the file.",
            json_file,
            len(coco.anns),
            num_valid,
        )
    if "minival" not in json_file:
        # The "minival" files of the early COCO releases are known to repeat ids.
        _check_unique_annotation_ids(coco, json_file)
    logger.info("Loaded %d images in COCO format from %s", len(image_ids), json_file)
    reader = _AnnotationReader(json_file, id_map, extra_annotation_keys or [])
    records = []
    for image_id in image_ids:
        image = coco.imgs[image_id]
        annotations = [reader.read(raw, image_id) for raw in coco.imgToAnns[image_id]]
        record = {
            "file_name": os.path.join(image_root, _field(image, "file_name", json_file)),
            "height": _field(image, "height", json_file),
            "width": _field(image, "width", json_file),
            "image_id": image_id,
            "annotations": [annotation for annotation in annotations if annotation is not None],
        }
        records.append(record)
    reader.report_filtered()
    return records


def read_coco_api(json_file: str) -> COCO:
    """Open a COCO JSON with pycocotools, without its messages on stdout.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON, or not laid out as COCO's.
    """
    path = PathManager.get_local_path(json_file)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"The annotation file '{json_file}' does not exist. Data sets are looked up under the "
            "folder in the environment variable DETECTRON2_DATASETS, by default ./datasets."
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"The annotation file '{json_file}' is not valid JSON: {error}") from error
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"The annotation file '{json_file}' is not laid out as a COCO JSON "
            f"({type(error).__name__}: {error}); it needs 'images', 'annotations' and 'categories'."
        ) from error


def _field(image: dict[str, Any], key: str, json_file: str) -> Any:
    if key not in image:
        raise ValueError(f"Image {image.get('id')} in '{json_file}' has no '{key}'.")
    return image[key]


def _register_categories(coco: COCO, json_file: str, dataset_name: str) -> dict[int, int]:
    """Put the class names into the metadata; returns category id -> contiguous id."""
    if "categories" not in coco.dataset:
        raise ValueError(f"The annotation file '{json_file}' has no 'categories'.")
    category_ids = sorted(coco.getCatIds())
    categories = coco.loadCats(category_ids)
    metadata = MetadataCatalog.get(dataset_name)
    metadata.thing_classes = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
    contiguous = bool(category_ids) and category_ids == list(range(1, len(category_ids) + 1))
    if not contiguous and "coco" not in dataset_name:
        logger.warning(
            "Category ids in annotations are not in [1, #categories]! We'll apply a mapping for you."
        )
    id_map = {category_id: index for index, category_id in enumerate(category_ids)}
    metadata.thing_dataset_id_to_contiguous_id = id_map
    return id_map


def _check_unique_annotation_ids(coco: COCO, json_file: str) -> None:
    counts = Counter(annotation["id"] for annotations in coco.imgToAnns.values() for annotation in annotations)
    repeated = [annotation_id for annotation_id, count in counts.items() if count > 1]
    assert not repeated, (
        f"Annotation ids in '{json_file}' are not unique! Repeated: {repeated[:10]}"
        f"{' ...' if len(repeated) > 10 else ''}"
    )


class _AnnotationReader:
    """Turns the annotations of one file into detectron2's form and counts what it drops."""

    def __init__(
        self, json_file: str, id_map: dict[int, int] | None, extra_keys: list[str]
    ) -> None:
        self.json_file = json_file
        self.id_map = id_map
        self.keys = ["iscrowd", "bbox", "keypoints", "category_id", *extra_keys]
        self.num_without_segmentation = 0

    def read(self, raw: dict[str, Any], image_id: int) -> dict[str, Any] | None:
        """One annotation, or None when its polygons are all invalid."""
        assert raw["image_id"] == image_id
        assert raw.get("ignore", 0) == 0, (
            f'"ignore" in COCO json file is not supported (annotation {raw.get("id")} in '
            f"'{self.json_file}')."
        )
        annotation = {key: raw[key] for key in self.keys if key in raw}
        if "bbox" in annotation and len(annotation["bbox"]) == 0:
            raise ValueError(
                f"One annotation of image {image_id} contains empty 'bbox' value! This json does not "
                f"have valid COCO format (annotation {raw.get('id')} in '{self.json_file}')."
            )
        segmentation = raw.get("segmentation")
        if segmentation:
            segmentation = _valid_segmentation(segmentation)
            if segmentation is None:
                self.num_without_segmentation += 1
                return None
            annotation["segmentation"] = segmentation
        if annotation.get("keypoints"):
            annotation["keypoints"] = _shift_keypoints(annotation["keypoints"])
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
        if self.id_map is not None:
            annotation["category_id"] = self._contiguous_category(raw)
        return annotation

    def _contiguous_category(self, raw: dict[str, Any]) -> int:
        assert self.id_map is not None
        category_id = raw.get("category_id")
        if category_id not in self.id_map:
            raise KeyError(
                f"Encountered category_id={category_id} but this id does not exist in 'categories' of "
                f"the json file '{self.json_file}' (annotation {raw.get('id')} of image "
                f"{raw.get('image_id')})."
            )
        return self.id_map[category_id]

    def report_filtered(self) -> None:
        """Warn about dropped annotations, if any."""
        if self.num_without_segmentation > 0:
            logger.warning(
                "Filtered out %d instances without valid segmentation. There might be issues in your "
                "dataset generation process: a polygon needs an even number of at least 6 numbers.",
                self.num_without_segmentation,
            )


def _valid_segmentation(segmentation: Any) -> Any:
    """A compressed RLE or the valid polygons (at least 3 points); None if no polygon is valid."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    polygons = [p for p in segmentation if len(p) % 2 == 0 and len(p) >= 6]
    return polygons or None


def _shift_keypoints(keypoints: list[float]) -> list[float]:
    """Move x and y from COCO's pixel indices (centres at integers) to continuous coordinates."""
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
    """The annotations of a registered data set of any format, as a COCO dict.

    Category ids become those of the original file where the metadata know them.
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
    logger.info(
        "Conversion finished, #images: %d, #annotations: %d", len(images), len(annotations)
    )
    info = {
        "date_created": str(datetime.datetime.now()),
        "description": "Automatically generated COCO json file for Detectron2.",
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
        raise TypeError(f"Unknown segmentation type {type(segmentation)}!")
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
        allow_cached: leave an existing file as it is.
    """
    PathManager.mkdirs(os.path.dirname(output_file) or ".")
    with file_lock(output_file):
        if PathManager.exists(output_file) and allow_cached:
            logger.warning(
                "Using previously cached COCO format annotations at '%s'. You need to clear the cache "
                "file if your dataset has been modified.",
                output_file,
            )
            return
        logger.info("Converting annotations of dataset '%s' to COCO format ...", dataset_name)
        coco_dict = convert_to_coco_dict(dataset_name)
        partial_file = output_file + ".tmp"
        with PathManager.open(partial_file, "w") as file:
            json.dump(coco_dict, file)
        PathManager.mv(partial_file, output_file)
