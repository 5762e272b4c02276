"""Convert folders of Pascal VOC or YOLO labels to COCO JSON, validated before it is written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokendetr.data.coco_check import validate_coco
from tokendetr.data.survey import check_image_files
from tokendetr.errors import DatasetError, OutputError
from tokendetr.io.atomic import write_atomically
from tokendetr.io.label_folders import LabelFolder, recognize, to_coco
from tokendetr.io.temporary import temporary_folder

__all__ = ["Converted", "convert_folder"]


@dataclass(frozen=True)
class Converted:
    """A JSON file that was written.

    Attributes:
        json_file: the annotations.
        image_root: folder that their file names are relative to.
        num_images: number of images.
        num_boxes: number of boxes.
        names: class names by category id, from 1.
    """

    json_file: Path
    image_root: Path
    num_images: int
    num_boxes: int
    names: tuple[str, ...]


def convert_folder(
    folder: str | Path,
    output: str | Path,
    *,
    kind: str = "auto",
    names: Sequence[str] = (),
    splits: Sequence[str] = (),
    val_share: float = 0.2,
    open_images: bool = True,
) -> list[Converted]:
    """Write ``<output>/<split>.json`` for every split of a folder of VOC or YOLO labels.

    The JSON is validated as before training, and every image is opened; only then are the files
    written. Images stay where they are. A folder without splits is split at random with a fixed
    seed.

    Args:
        folder: see :func:`tokendetr.io.label_folders.recognize`.
        output: folder to write to.
        kind: ``voc``, ``yolo`` or "auto".
        names: order of the classes; default: the folder's own list, else alphabetical.
        splits: the splits to write; default: all.
        val_share: share of the images in ``val.json`` if the folder has no splits, in [0, 1); 0
            writes ``all.json`` instead.
        open_images: decode every image and compare its size with the labels'.

    Raises:
        FileNotFoundError, DatasetError: labels or images cannot be used.
        OutputError: a file to write exists already.
    """
    found = recognize(folder, kind)
    if unknown := set(splits) - set(found.parts):
        raise DatasetError(
            f"{found.root} has no split {sorted(unknown)[0]!r}: it has {', '.join(found.parts)}"
        )
    parts = {name: part for name, part in found.parts.items() if not splits or name in splits}
    found = replace(found, parts=parts, names=_ordered(found, names))
    data = to_coco(found, val_share=val_share)
    target = Path(output)
    for name in data:
        if (target / f"{name}.json").exists():
            raise OutputError(f"{target / name}.json exists: remove it, or choose another folder")
    with temporary_folder() as stage:
        for name, (images, each) in data.items():
            file = str(stage / f"{name}.json")
            Path(file).write_text(json.dumps(each))
            try:
                validate_coco(
                    file,
                    str(images),
                    name=name,
                    remedy=f"Correct the labels in {found.root}; no JSON was written.",
                )
                if open_images:
                    check_image_files(file, str(images))
            except DatasetError as error:  # the user knows the file to write alone
                message = str(error).replace(file, str(target / f"{name}.json"))
                raise DatasetError(message) from error
    return [_write(target / f"{name}.json", images, each) for name, (images, each) in data.items()]


def _ordered(found: LabelFolder, names: Sequence[str]) -> Sequence[str]:
    """Return the order of the classes: the caller's if given, else the folder's.

    Raises:
        DatasetError: names are given for YOLO labels, whose class numbers have names already.
    """
    if names and found.kind == "yolo":
        raise DatasetError(f"{found.root}: the classes of YOLO labels are numbered in data.yaml")
    return names or found.names


def _write(path: Path, images: Path, data: dict[str, Any]) -> Converted:
    write_atomically(str(path), json.dumps(data).encode())
    return Converted(
        path,
        images,
        len(data["images"]),
        len(data["annotations"]),
        tuple(category["name"] for category in data["categories"]),
    )
