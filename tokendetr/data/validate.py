"""Strict checks of data sets before training: every fault is named by file and record."""

import difflib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from omegaconf import OmegaConf

from tokendetr.data.paths import Folders
from tokendetr.errors import DatasetError

__all__ = [
    "CocoFiles",
    "coco_files",
    "dataset_names",
    "model_classes",
    "read_coco",
    "validate_coco",
    "validate_config_data",
]

logger = logging.getLogger(__name__)

_SHOWN = 20
_TOLERANCE_PX = 2.0


def validate_config_data(cfg: Any, *, evaluation_only: bool = False) -> None:
    """Check the data sets that a config names, as ``train.validate_data`` says.

    ``"strict"``: faults are errors. ``"warn"``: they are logged. ``"off"``: nothing is checked.
    Rank 0 checks; all ranks raise.

    Args:
        cfg: the whole config.
        evaluation_only: leave the training set out.

    Raises:
        DatasetError: a fault, an unknown name, or more categories than the model has classes.
        FileNotFoundError: annotations that do not exist.
    """
    mode = str(OmegaConf.select(cfg, "train.validate_data", default="strict"))
    if mode not in ("strict", "warn", "off"):
        raise DatasetError(f"train.validate_data={mode!r}: use strict, warn or off")
    if mode == "off":
        return
    failure: Exception | None = None
    if comm.is_main_process():
        try:
            for name, for_evaluation in dataset_names(cfg, evaluation_only=evaluation_only):
                _validate_registered(name, for_evaluation, model_classes(cfg))
        except (DatasetError, FileNotFoundError) as error:
            failure = error
    message = comm.all_gather(None if failure is None else str(failure))[0]
    if message is None:
        return
    if mode == "warn":
        logger.warning("%s", message)
        return
    raise failure or DatasetError(message)


def dataset_names(cfg: Any, *, evaluation_only: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the names of a config's data sets, and whether they are for evaluation."""
    parts = [("test", True)] if evaluation_only else [("train", False), ("test", True)]
    for part, for_evaluation in parts:
        names = OmegaConf.select(cfg, f"dataloader.{part}.dataset.names", default=None) or []
        for name in [names] if isinstance(names, str) else names:
            yield str(name), for_evaluation


def model_classes(cfg: Any) -> int | None:
    """Return ``model.num_classes`` where a config has it."""
    value = OmegaConf.select(cfg, "model.num_classes", default=None)
    return value if isinstance(value, int) else None


@dataclass(frozen=True)
class CocoFiles:
    """Where a registered data set in COCO's format lies.

    Attributes:
        json_file: its annotations.
        image_root: folder of its images.
        has_file_names: False for LVIS, whose file names come from URLs.
    """

    json_file: str
    image_root: str
    has_file_names: bool


def coco_files(name: str) -> CocoFiles | None:
    """Return the files of a registered data set, None where it is of another format.

    Data sets that the project makes itself are made first.

    Raises:
        DatasetError: nothing is registered under the name; the message has similar ones.
    """
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise DatasetError(
            f"no data set is registered as {name!r}{hint} Register it in your config with "
            "detectron2.data.datasets.register_coco_instances(name, {}, json_file, image_root)."
        )
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file", None)
    kind = metadata.get("evaluator_type", "coco")
    if json_file is None or kind not in ("coco", "lvis"):
        return None
    prepare = metadata.get("prepare", None)
    if prepare is not None:
        prepare()
    return CocoFiles(str(json_file), str(metadata.image_root), kind == "coco")


def _validate_registered(name: str, for_evaluation: bool, num_classes: int | None) -> None:
    files = coco_files(name)
    if files is not None:
        validate_coco(
            files.json_file,
            files.image_root,
            name=name,
            for_evaluation=for_evaluation,
            num_classes=num_classes,
            has_file_names=files.has_file_names,
        )


def validate_coco(
    json_file: str,
    image_root: str,
    *,
    name: str = "",
    for_evaluation: bool = False,
    num_classes: int | None = None,
    has_file_names: bool = True,
) -> None:
    """Check a COCO-format data set: the JSON's records, and that every image file is there.

    Checked: layout of the JSON; ids that repeat; image sizes; file names that leave ``image_root``
    (absolute, ``..``, through a symbolic link); image files that are missing; annotations of
    unknown images or categories; boxes that are no four finite numbers, inverted, or more than 2
    pixels outside their image; more categories than ``num_classes``. Boxes without area are only
    counted: loaders drop them. Images are not opened.

    Args:
        json_file: the annotations.
        image_root: folder of the images.
        name: the data set's name, for messages.
        for_evaluation: also refuse annotation id 0, which COCO's evaluation takes for "no match".
        num_classes: of the model.
        has_file_names: False for LVIS, whose file names come from URLs.

    Raises:
        FileNotFoundError: no annotations, or no image folder; says where they are looked for.
        DatasetError: all other faults, up to 20 of them listed.
    """
    label = f"data set {name!r} ({json_file})" if name else json_file
    data = read_coco(json_file, label)
    checker = _Checker(json_file)
    images = checker.by_id(data["images"], "image")
    categories = checker.by_id(data["categories"], "category")
    if num_classes is not None and len(categories) > num_classes:
        checker.add(
            f"{len(categories)} categories, but the model has num_classes={num_classes}: set "
            f"model.num_classes={len(categories)}"
        )
    for image in images.values():
        checker.check_size(image)
    if has_file_names:
        checker.check_files(images.values(), image_root)
    # The test splits of COCO have no annotations.
    annotations = checker.by_id(data.get("annotations", []), "annotation")
    for annotation in annotations.values():
        checker.check_annotation(annotation, images, categories)
    if for_evaluation and 0 in annotations:
        checker.add("annotation id 0: COCO's evaluation counts it as missed; number from 1")
    checker.finish(label)


def read_coco(json_file: str, label: str = "") -> dict[str, Any]:
    """Read a COCO JSON and check its outermost layout.

    Args:
        json_file: the annotations.
        label: what messages call it; the file's name where empty.

    Raises:
        FileNotFoundError: no such file; says where data sets are looked for.
        DatasetError: no JSON, or not laid out as COCO's.
    """
    label = label or json_file
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
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{json_file} is no readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{json_file} holds a {type(data).__name__}, not a COCO dict")
    for key in ("images", "categories", "annotations"):
        if key not in data and key != "annotations":
            raise DatasetError(f"{json_file} has no {key!r}: a COCO JSON needs it")
        if key in data and not isinstance(data[key], list):
            raise DatasetError(f"{json_file}: {key!r} is a {type(data[key]).__name__}, not a list")
    return data


class _Checker:
    """Collects the faults of one file."""

    def __init__(self, json_file: str) -> None:
        self.json_file = json_file
        self.faults: list[str] = []
        self.count = 0
        self.without_area = 0

    def add(self, fault: str) -> None:
        self.count += 1
        if len(self.faults) < _SHOWN:
            self.faults.append(fault)

    def finish(self, label: str) -> None:
        if self.without_area:
            logger.warning("%s: %d boxes have no area and are ignored", label, self.without_area)
        if not self.count:
            return
        more = f"\n  ... and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
        listed = "\n".join(f"  {fault}" for fault in self.faults)
        raise DatasetError(
            f"{label} has {self.count} fault{'s' if self.count > 1 else ''}:\n{listed}{more}\n"
            "Correct them, or set train.validate_data=warn to go on regardless."
        )

    def by_id(self, records: list[Any], kind: str) -> dict[Any, dict[str, Any]]:
        """Records by id; those without a usable id are faults."""
        found: dict[Any, dict[str, Any]] = {}
        for index, record in enumerate(records):
            if not isinstance(record, dict) or not isinstance(record.get("id"), (int, str)):
                self.add(f"{kind} number {index} has no id")
            elif record["id"] in found:
                self.add(f"{kind} id {record['id']} is used more than once")
            else:
                found[record["id"]] = record
        return found

    def check_size(self, image: dict[str, Any]) -> None:
        for key in ("width", "height"):
            value = image.get(key)
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 1:
                self.add(f"{_image_name(image)}: {key} is {value!r}")

    def check_files(self, images: Iterable[dict[str, Any]], image_root: str) -> None:
        """Every file is there and inside the image root."""
        root = PathManager.get_local_path(image_root)
        if not os.path.isdir(root):
            raise FileNotFoundError(
                f"the image folder {image_root!r} of {self.json_file} does not exist; data sets "
                "are looked for under the environment variable DETECTRON2_DATASETS"
            )
        folders = Folders(os.path.realpath(root))
        for image in images:
            name = image.get("file_name")
            if not isinstance(name, str) or not name:
                self.add(f"{_image_name(image)}: it has no file_name")
                continue
            fault = folders.fault(name)
            if fault:
                self.add(f"{_image_name(image)}: {fault}")

    def check_annotation(
        self, annotation: dict[str, Any], images: dict[Any, Any], categories: dict[Any, Any]
    ) -> None:
        which = f"annotation id {annotation['id']}"
        image = images.get(annotation.get("image_id"))
        if image is None:
            self.add(f"{which}: image_id {annotation.get('image_id')!r} is no image of the file")
            return
        if annotation.get("category_id") not in categories:
            self.add(
                f"{which} of {_image_name(image)}: category_id {annotation.get('category_id')!r} "
                "is no category of the file"
            )
        if annotation.get("ignore"):
            self.add(f"{which}: detectron2 knows no ignore; set iscrowd to 1 instead")
        fault = self._box_fault(annotation.get("bbox"), image)
        if fault:
            self.add(f"{which} of {_image_name(image)}: {fault}")

    def _box_fault(self, box: Any, image: dict[str, Any]) -> str:
        is_box = isinstance(box, list) and len(box) == 4
        if not is_box or not all(isinstance(v, (int, float)) for v in box):
            return f"bbox {box!r} is not four numbers [x, y, width, height]"
        x, y, width, height = box
        if not all(map(math.isfinite, box)):
            return f"bbox {box} is not finite"
        if width < 0 or height < 0:
            return f"bbox {box} is inverted: width and height must not be negative"
        image_width, image_height = image.get("width"), image.get("height")
        if not isinstance(image_width, (int, float)) or not isinstance(image_height, (int, float)):
            return ""
        edge = _TOLERANCE_PX
        if (
            x < -edge
            or y < -edge
            or x + width > image_width + edge
            or y + height > image_height + edge
        ):
            return f"bbox {box} lies outside the image of {image_width} x {image_height} pixels"
        if width == 0 or height == 0:
            self.without_area += 1
        return ""


def _image_name(image: dict[str, Any]) -> str:
    return f"image id {image.get('id')} ({image.get('file_name', 'no file name')})"
