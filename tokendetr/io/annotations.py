"""Read COCO-format annotations as labeling tools write them in practice.

Validation, loaders and evaluators share this one reader, so validation accepts exactly what
loading, training and evaluation accept. Missing ``area`` and ``iscrowd`` are filled in, ids are
normalized to one type, unreadable masks and keypoints are dropped while their boxes are kept, and
every record that cannot be used is reported by id.

The module needs only the standard library: ``tokendetr`` and, through a symbolic link, the stand-in
for detectron2 read with it, and the stand-in must not import ``tokendetr``.
"""
# Over 350 lines: it is linked into the stand-in, with the file of masks beside it and no other.

import json
import math
import reprlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._annotation_masks import (
    MAX_NUMBER,
    are_numbers,
    is_finite,
    is_number,
    is_outline,
    is_real,
    is_run_lengths,
)

__all__ = [
    "FOR_EVALUATION",
    "AnnotationError",
    "Annotations",
    "check_classes",
    "check_results",
    "federated_faults",
    "max_detections",
    "normalize",
    "parse_json",
    "read_annotations",
    "require_evaluable",
]

WITHOUT_AREA = "annotations without area: width x height of the box is taken"
WITHOUT_CROWD = "annotations without iscrowd: 0 is taken"
FOR_EVALUATION = frozenset((WITHOUT_AREA, WITHOUT_CROWD))

_SHOWN = 20
_MAX_SIDE = 1 << 20
_MAX_DETECTIONS = 100_000


class AnnotationError(ValueError):
    """Annotations that cannot be used; the message names the file and the records."""


@dataclass
class Annotations:
    """A normalized COCO dict, and a record of what had to be changed.

    Attributes:
        data: ``images``, ``categories`` and (unless the file has none) ``annotations``. Ids of one
            kind are all int or all str; annotations have ``bbox``, ``area``, ``iscrowd`` and, only
            if readable, ``segmentation`` and ``keypoints``. Records with faults are left out.
        faults: one sentence for each record that cannot be used.
        strays: one sentence for each annotation of an image that the file lacks; left out as well.
        filled: what was filled in, changed or left out -> number of records. The keys of
            :data:`FOR_EVALUATION` matter to evaluations only.
        without_mask: names of the annotations that have a box but no readable mask.
    """

    data: dict[str, Any]
    faults: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    filled: Counter[str] = field(default_factory=Counter)
    without_mask: list[str] = field(default_factory=list)

    def note(self) -> str:
        """Return one line on what was filled in or left out, or ""."""
        return "; ".join(f"{count} {what}" for what, count in self.filled.items())

    def check(self, label: str, remedy: str = "Correct them.") -> None:
        """Raise an error that lists the faults, if there are any.

        Args:
            label: what the message calls the file.
            remedy: last line of the message.

        Raises:
            AnnotationError: there are faults; the first twenty are listed.
        """
        if not self.faults:
            return
        count = len(self.faults)
        more = f"\n  ... and {count - _SHOWN} more" if count > _SHOWN else ""
        listed = "\n".join(f"  {fault}" for fault in self.faults[:_SHOWN])
        plural = "s" if count > 1 else ""
        raise AnnotationError(f"{label} has {count} fault{plural}:\n{listed}{more}\n{remedy}")


def read_annotations(
    path: str, label: str = "", *, has_file_names: bool = True, unique_ids: bool = True
) -> Annotations:
    """Read and normalize a file, and refuse it if a record cannot be used.

    Args:
        path: a local file.
        label: what messages call it; the path if empty.
        has_file_names: images must have a ``file_name``; False for LVIS, whose images have URLs.
        unique_ids: annotation ids must differ.

    Raises:
        AnnotationError: the message names the file and the records.
    """
    label = label or path
    found = normalize(parse_json(path, label), has_file_names=has_file_names, unique_ids=unique_ids)
    found.check(label)
    return found


def parse_json(path: str, label: str = "") -> dict[str, Any]:
    """Read a JSON file and check its top-level layout.

    Raises:
        AnnotationError: it is no JSON, or lacks COCO's top-level lists.
    """
    label = label or path
    try:
        with open(path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:  # also of its decoder, and of huge numbers
        raise AnnotationError(f"{label} is no readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise AnnotationError(f"{label} holds a {type(data).__name__}, not a COCO dict")
    for key in ("images", "categories", "annotations"):
        if key not in data and key != "annotations":
            raise AnnotationError(f"{label} has no {key!r}: a COCO JSON needs it")
        if key in data and not isinstance(data[key], list):
            raise AnnotationError(f"{label}: {key!r} is a {type(data[key]).__name__}, not a list")
    return data


def normalize(
    data: dict[str, Any], *, has_file_names: bool = True, unique_ids: bool = True
) -> Annotations:
    """Normalize a COCO dict; the argument is not changed.

    Args:
        data: with the layout that :func:`parse_json` checks.
        has_file_names, unique_ids: see :func:`read_annotations`.
    """
    found = Annotations(dict(data))
    images = _by_id(found, data["images"], "image", unique=True)
    categories = _by_id(found, data["categories"], "category", unique=True)
    for kind, records in (("images", data["images"]), ("categories", data["categories"])):
        if not records:
            found.faults.append(f"there are no {kind}")
    for image in images.values():
        _image(found, image, has_file_names)
    for category in categories.values():
        _category(found, category)
    found.data["images"] = list(images.values())
    found.data["categories"] = list(categories.values())
    # The evaluators read these two, and many tools do not write them.
    found.data["info"] = data.get("info") if isinstance(data.get("info"), dict) else {}
    found.data["licenses"] = data.get("licenses") if isinstance(data.get("licenses"), list) else []
    if "annotations" in data:
        records = _with_ids(found, data["annotations"], unique_ids)
        kept = [_annotation(found, record, images, categories) for record in records]
        found.data["annotations"] = [record for record in kept if record is not None]
    return found


# ----------------------------------------------------------------------------- evaluation


def require_evaluable(data: Mapping[str, Any], label: str, tasks: Sequence[str] = ()) -> None:
    """Refuse ground truth on which COCO's evaluation would fail or give wrong numbers.

    Args:
        data: the ``data`` of :func:`normalize`.
        label: the file, for messages.
        tasks: ``segm`` requires a mask in every annotation.

    Raises:
        AnnotationError: the message gives the reason.
    """
    for annotation in data.get("annotations", []):
        if annotation["id"] == 0:
            raise AnnotationError(
                f"{label}: annotation id 0: COCO's evaluation counts it as missed; number from 1"
            )
        if "segm" in tasks and "segmentation" not in annotation:
            raise AnnotationError(
                f"{label}: annotation id {annotation['id']} of image id {annotation['image_id']} "
                "has no segmentation that can be read: masks cannot be evaluated"
            )


def check_classes(rows: Sequence[Mapping[str, Any]], count: int) -> None:
    """Refuse predictions of classes that a data set does not have.

    Args:
        rows: in COCO's result format, but with the model's class indices, from 0.
        count: number of categories.

    Raises:
        ValueError: a class is out of range; the message names image and class.
    """
    for row in rows:
        if not 0 <= row["category_id"] < count:
            raise ValueError(
                f"a prediction of image {_shown(row['image_id'])} has class {row['category_id']}, "
                f"but the data set has only {count} categories"
            )


def check_results(
    rows: Sequence[Mapping[str, Any]], image_ids: Container[Any], tasks: Sequence[str] = ()
) -> None:
    """Refuse predictions that implementations of COCO's evaluation treat differently.

    Args:
        rows: in COCO's result format.
        image_ids: ids of the ground truth's images.
        tasks: ``segm`` requires a mask in every prediction, ``keypoints`` its keypoints.

    Raises:
        ValueError: a prediction is for an unknown image, lacks what a task needs, or has a box or
            score that is not finite.
    """
    for row in rows:
        for task, part in (("segm", "segmentation"), ("keypoints", "keypoints")):
            if task in tasks and part not in row:
                raise ValueError(
                    f"a prediction of image {_shown(row['image_id'])} has no {part}, which "
                    f"tasks={task} evaluates: ask only for what the model predicts"
                )
        if row["image_id"] not in image_ids:
            raise ValueError(
                f"a prediction is for image {_shown(row['image_id'])}, which the annotations do "
                "not have: loader and evaluator use different data sets"
            )
        if not all(map(math.isfinite, (*row.get("bbox", ()), row["score"]))):
            raise ValueError(
                f"a prediction for image {_shown(row['image_id'])} is not finite: box "
                f"{_shown(row.get('bbox'))}, score {row['score']}"
            )


def max_detections(given: int | Sequence[int] | None) -> list[int]:
    """Return the three numbers of ``maxDets``, ascending as pycocotools sorts them.

    Args:
        given: the maximum number of detections per image, or all three numbers; None for
            (1, 10, 100).

    Raises:
        ValueError: neither one nor three positive numbers up to 100,000.
    """
    if given is None:
        return [1, 10, 100]
    numbers: Any = [1, min(10, given), given] if isinstance(given, int) else given
    is_right = isinstance(numbers, Sequence) and len(numbers) == 3
    if not is_right or not all(isinstance(n, int) and 0 < n <= _MAX_DETECTIONS for n in numbers):
        raise ValueError(
            f"max_dets_per_image={_shown(given)}: give one positive number, or three as maxDets "
            f"(at most {_MAX_DETECTIONS:,})"
        )
    return sorted(numbers)


def federated_faults(data: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each record that lacks a field of LVIS's evaluation.

    Args:
        data: the ``data`` of :func:`normalize`.
    """
    faults = [
        f"{_image_name(image)}: there is no list {key!r}, which LVIS's evaluation needs"
        for image in data["images"]
        for key in ("neg_category_ids", "not_exhaustive_category_ids")
        if not isinstance(image.get(key), list)
    ]
    return faults + [
        f"category id {category['id']} ({category['name']}): frequency is "
        f"{_shown(category.get('frequency'))}, not 'r', 'c' or 'f'"
        for category in data["categories"]
        if category.get("frequency") not in ("r", "c", "f")
    ]


# ------------------------------------------------------------------------------------ ids


def _plain_id(value: Any) -> int | str | None:
    """Return an id as int or str, None if it is neither; spreadsheets write 1.0 for 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_NUMBER:
        return value
    return value if isinstance(value, str) and value and "\0" not in value else None


def _by_id(
    found: Annotations, records: Sequence[Any], kind: str, *, unique: bool
) -> dict[Any, dict[str, Any]]:
    """Return copies of the records by id; note records without an id or with a repeated one."""
    by_id: dict[Any, dict[str, Any]] = {}
    for index, record in enumerate(records):
        plain = _plain_id(record.get("id")) if isinstance(record, dict) else None
        if plain is None:
            found.faults.append(_no_id(record, kind, index))
        elif plain in by_id:
            found.faults.append(f"{kind} id {plain} is used more than once")
        else:
            by_id[plain] = {**record, "id": plain}
    kinds = {type(plain): plain for plain in by_id}
    if len(kinds) > 1:
        found.faults.append(
            f"{kind} ids are of two kinds, numbers and text ({kinds[int]!r} and {kinds[str]!r}): "
            "use one"
        )
    return by_id


def _no_id(record: Any, kind: str, index: int) -> str:
    if isinstance(record, dict) and record.get("id") is not None:
        return f"{kind} number {index} has no id that can be used, but {_shown(record['id'])}"
    return f"{kind} number {index} has no id"


def _with_ids(found: Annotations, records: Sequence[Any], unique: bool) -> list[dict[str, Any]]:
    """Return copies of the annotations; text ids become numbers, since nothing refers to them."""
    result, seen = [], set()
    for index, record in enumerate(records):
        plain = _plain_id(record.get("id")) if isinstance(record, dict) else None
        if plain is None:
            found.faults.append(_no_id(record, "annotation", index))
            continue
        if plain in seen and unique:
            found.faults.append(f"annotation id {plain} is used more than once")
        seen.add(plain)
        result.append({**record, "id": plain})
    if any(isinstance(plain, str) for plain in seen):
        for number, record in enumerate(result, start=1):
            record["id"] = number
    return result


# -------------------------------------------------------------------------------- records


def _image(found: Annotations, image: dict[str, Any], has_file_names: bool) -> None:
    for key in ("width", "height"):
        value: Any = image.get(key)
        if not is_number(value) or not 1 <= value <= _MAX_SIDE or value != int(value):
            found.faults.append(f"{_image_name(image)}: {key} is {_shown(value)}")
        else:
            image[key] = int(value)
    name = image.get("file_name" if has_file_names or "coco_url" not in image else "coco_url")
    if not isinstance(name, str) or not name:
        found.faults.append(f"{_image_name(image)}: it has no file_name")
    elif "\0" in name:
        found.faults.append(f"{_image_name(image)}: there is a NUL in its file_name")


def _category(found: Annotations, category: dict[str, Any]) -> None:
    name = category.get("name")
    synonyms = category.get("synonyms")  # LVIS has these beside or instead of the name
    if name is None and isinstance(synonyms, list) and synonyms:
        category["name"] = name = synonyms[0]
    if is_number(name):
        found.filled["categories with a number as name: it is read as text"] += 1
        category["name"] = name = str(name)
    if not isinstance(name, str) or not name:
        found.faults.append(f"category id {category['id']} has no name, but {_shown(name)}")
    elif any("\ud800" <= character <= "\udfff" for character in name):
        found.faults.append(
            f"category id {category['id']}: its name {_shown(ascii(name))} has halves of "
            "characters, which no file can hold"
        )


def _annotation(
    found: Annotations, record: dict[str, Any], images: dict[Any, Any], categories: dict[Any, Any]
) -> dict[str, Any] | None:
    """Complete an annotation in place and return it; None if it has a fault."""
    which = f"annotation id {record['id']}"
    image = images.get(_plain_id(record.get("image_id")))
    if image is None:
        given = _shown(record.get("image_id"))
        found.strays.append(f"{which}: image_id {given} is no image of the file")
        return None
    category = categories.get(_plain_id(record.get("category_id")))
    record["image_id"] = image["id"]
    which = f"{which} of {_image_name(image)}"
    faults = [_box_fault(record.get("bbox")), _flag_fault(found, record), _area_fault(record)]
    if category is None:
        given = _shown(record.get("category_id"))
        faults.append(f"category_id {given} is no category of the file")
    faults = [fault for fault in faults if fault]
    if faults:
        found.faults.extend(f"{which}: {fault}" for fault in faults)
        return None
    record["category_id"] = category["id"] if category else None
    if record.get("area") is None:
        found.filled[WITHOUT_AREA] += 1
        record["area"] = record["bbox"][2] * record["bbox"][3]
    _mask(found, record, image, which)
    keypoints = record.get("keypoints")
    if "keypoints" in record and not are_numbers(keypoints, 3, 0):
        if keypoints:
            found.filled["annotations whose keypoints cannot be read: they are left out"] += 1
        del record["keypoints"]
    return record


def _box_fault(box: Any) -> str:
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_real, box)):
        return f"bbox {_shown(box)} is not four numbers [x, y, width, height]"
    if not all(map(is_finite, box)) or max(map(abs, box)) > MAX_NUMBER:
        return f"bbox {_shown(box)} is not finite"
    if box[2] < 0 or box[3] < 0:
        return f"bbox {_shown(box)} is inverted: width and height must not be negative"
    return ""


def _flag_fault(found: Annotations, record: dict[str, Any]) -> str:
    ignore = record.pop("ignore", 0)
    if ignore not in (0, None) or isinstance(ignore, (dict, list)):
        return (
            f"there is an ignore, {_shown(ignore)}: detectron2 knows none; set iscrowd to 1 instead"
        )
    if record.get("iscrowd") is None:
        found.filled[WITHOUT_CROWD] += 1
        record["iscrowd"] = 0
    if not isinstance(record["iscrowd"], (int, float)) or record["iscrowd"] not in (0, 1):
        return f"iscrowd is {_shown(record['iscrowd'])}, not 0 or 1"
    record["iscrowd"] = int(record["iscrowd"])
    return ""


def _area_fault(record: dict[str, Any]) -> str:
    area = record.get("area")
    if area is not None and (not is_number(area) or not 0 <= area < MAX_NUMBER):
        return f"area is {_shown(area)}, not a number of at least 0"
    return ""


def _mask(found: Annotations, record: dict[str, Any], image: dict[str, Any], which: str) -> None:
    """Keep the readable part of a segmentation."""
    given = record.pop("segmentation", None)
    mask: Any = None
    if isinstance(given, list):
        mask = [polygon for polygon in given if is_outline(polygon, image)] or None
    elif isinstance(given, dict) and is_run_lengths(given, image):
        mask = {**given, "size": [image["height"], image["width"]]}  # integers, also for 80.0
    if mask is not None:
        record["segmentation"] = mask
        return
    found.without_mask.append(which)
    if given:
        found.filled["annotations whose segmentation cannot be read: their boxes are kept"] += 1


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxlong, _REPR.maxother = 2, 60, 40, 60


def _shown(value: Any) -> str:
    """Return a short representation of a value of any size or depth, for messages."""
    return _REPR.repr(value)


def _image_name(image: dict[str, Any]) -> str:
    name = image.get("file_name", "no file name")
    return f"image id {image['id']} ({name if isinstance(name, str) else _shown(name)})"
