"""Read COCO-format annotations as labeling tools write them in practice.

Validation, loaders and evaluators share this one reader, so validation accepts exactly what
loading, training and evaluation accept. Missing ``area`` and ``iscrowd`` are filled in, ids are
normalized to one type, unreadable masks and keypoints are dropped while their boxes are kept, and
every record that cannot be used is reported by id.

The module needs only the standard library and :mod:`tokendetr.io._annotation_values`: ``tokendetr``
and, through symbolic links to both, the stand-in for detectron2 read with it, and the stand-in must
not import ``tokendetr``.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ._annotation_values import (
    MAX_NUMBER,
    AnnotationError,
    are_numbers,
    image_name,
    is_finite,
    is_number,
    is_outline,
    is_real,
    is_run_lengths,
    shown,
)

__all__ = [
    "FOR_EVALUATION",
    "AnnotationError",
    "Annotations",
    "normalize",
    "parse_json",
    "read_annotations",
]

WITHOUT_AREA = "annotations without area: width x height of the box is taken"
WITHOUT_NAME = "images without file_name: folder and name at the end of coco_url are taken"
WITHOUT_CROWD = "annotations without iscrowd: 0 is taken"
FOR_EVALUATION = frozenset((WITHOUT_AREA, WITHOUT_CROWD))

_SHOWN = 20
_MAX_SIDE = 1 << 20


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
        has_file_names: False for LVIS, whose ``coco_url`` counts, not a ``file_name`` beside it. If
            an image has only one of the two, that is taken; the result has a ``file_name``.
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
        AnnotationError: it is not JSON, or lacks COCO's top-level lists.
    """
    label = label or path
    try:
        with open(path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:  # also of its decoder, and of huge numbers
        raise AnnotationError(f"{label} is not readable JSON: {error}") from error
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
        return f"{kind} number {index} has no id that can be used, but {shown(record['id'])}"
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
            found.faults.append(f"{image_name(image)}: {key} is {shown(value)}")
        else:
            image[key] = int(value)
    first, second = ("file_name", "coco_url") if has_file_names else ("coco_url", "file_name")
    key = first if first in image else second
    name = image.get(key)
    if key == "coco_url" and isinstance(name, str):
        # Where LVIS's loader looks: in the folders of COCO's splits.
        image["file_name"] = "/".join(name.split("/")[-2:])
        if has_file_names:
            found.filled[WITHOUT_NAME] += 1
        if "/" not in name:
            found.faults.append(f"{image_name(image)}: no folder is in its coco_url")
    if not isinstance(name, str) or not name:
        found.faults.append(f"{image_name(image)}: it has no file_name")
    elif "\0" in name:
        found.faults.append(f"{image_name(image)}: there is a NUL in its file_name")


def _category(found: Annotations, category: dict[str, Any]) -> None:
    name = category.get("name")
    synonyms = category.get("synonyms")  # LVIS has these beside or instead of the name
    if name is None and isinstance(synonyms, list) and synonyms:
        category["name"] = name = synonyms[0]
    if is_number(name):
        found.filled["categories with a number as name: it is read as text"] += 1
        category["name"] = name = str(name)
    if not isinstance(name, str) or not name:
        found.faults.append(f"category id {category['id']} has no name, but {shown(name)}")
    elif any("\ud800" <= character <= "\udfff" for character in name):
        found.faults.append(
            f"category id {category['id']}: its name {shown(ascii(name))} has halves of "
            "characters, which no file can hold"
        )


def _annotation(
    found: Annotations, record: dict[str, Any], images: dict[Any, Any], categories: dict[Any, Any]
) -> dict[str, Any] | None:
    """Complete an annotation in place and return it; None if it has a fault."""
    which = f"annotation id {record['id']}"
    image = images.get(_plain_id(record.get("image_id")))
    if image is None:
        given = shown(record.get("image_id"))
        found.strays.append(f"{which}: image_id {given} is not an image of the file")
        return None
    category = categories.get(_plain_id(record.get("category_id")))
    record["image_id"] = image["id"]
    which = f"{which} of {image_name(image)}"
    faults = [_box_fault(record.get("bbox")), _flag_fault(found, record), _area_fault(record)]
    if category is None:
        given = shown(record.get("category_id"))
        faults.append(f"category_id {given} is not a category of the file")
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
        return f"bbox {shown(box)} is not four numbers [x, y, width, height]"
    if not all(map(is_finite, box)) or max(map(abs, box)) > MAX_NUMBER:
        return f"bbox {shown(box)} is not finite"
    if box[2] < 0 or box[3] < 0:
        return f"bbox {shown(box)} is inverted: width and height must not be negative"
    return ""


def _flag_fault(found: Annotations, record: dict[str, Any]) -> str:
    ignore = record.pop("ignore", 0)
    if ignore not in (0, None) or isinstance(ignore, (dict, list)):
        return (
            f"there is an ignore, {shown(ignore)}: detectron2 knows none; set iscrowd to 1 instead"
        )
    if record.get("iscrowd") is None:
        found.filled[WITHOUT_CROWD] += 1
        record["iscrowd"] = 0
    if not isinstance(record["iscrowd"], (int, float)) or record["iscrowd"] not in (0, 1):
        return f"iscrowd is {shown(record['iscrowd'])}, not 0 or 1"
    record["iscrowd"] = int(record["iscrowd"])
    return ""


def _area_fault(record: dict[str, Any]) -> str:
    area = record.get("area")
    if area is not None and (not is_number(area) or not 0 <= area < MAX_NUMBER):
        return f"area is {shown(area)}, not a number of at least 0"
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
