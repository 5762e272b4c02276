"""Convert Pascal VOC XML and YOLO text to COCO's format with hotcoco's readers.

hotcoco reads a temporary folder in which every label file has a number for a name, and an image
without a label file has an empty one. The original file names and subfolders are restored from the
numbers afterwards.
"""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from tokendetr.errors import DatasetError
from tokendetr.io.images import IMAGE_SUFFIXES
from tokendetr.io.label_folders.find import find_files, read_content, read_text
from tokendetr.io.label_folders.parts import WHOLE, LabelFolder, Part
from tokendetr.io.optional_hotcoco import load_hotcoco
from tokendetr.io.temporary import temporary_folder

__all__ = ["split_at_random", "to_coco"]

Labeled = tuple[Path, dict[str, Any]]
"""Folder of the images, and a COCO data set."""

_ORIENTATION = 0x0112
_ON_A_SIDE = (5, 6, 7, 8)
_OF_AN_OBJECT = ("name", "bndbox", "difficult")
_FIELDS = 5  # of a box in a label file of YOLO

PURPOSE = "reading Pascal VOC and YOLO labels"


def to_coco(folder: LabelFolder, *, val_share: float = 0.0) -> dict[str, Labeled]:
    """Convert every part of a folder.

    All parts get the same categories, numbered from 1 in the order that the folder lists, else
    alphabetically. VOC's boxes, whose pixel coordinates start at 1 and include the last pixel,
    become ``[xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]``; objects marked as difficult
    are kept as ordinary objects. If an XML file has no image size, the image's own is used.

    Args:
        folder: of kind ``voc`` or ``yolo``.
        val_share: share of the images, in [0, 1), that become the part ``val`` if the folder is not
            split, drawn with a fixed seed; the rest become ``train``.

    Returns:
        For each part, the folder of its images and a COCO data set with file names relative to it.

    Raises:
        DatasetError: a file cannot be read or an image is missing; the message names it.
        ConfigError: hotcoco is not installed.
    """
    if folder.kind == "coco":
        raise DatasetError(f"{folder.root} has COCO JSON already: use it as it is")
    if not 0 <= val_share < 1:
        raise DatasetError(f"val_share must lie in [0, 1), got {val_share}")
    convert: Callable[[Part], dict[str, Any]]
    if folder.kind == "voc":
        convert = partial(_from_voc, names=_voc_names(folder), label_of={})
    else:
        convert = partial(_from_yolo, names=folder.names)
    parts = {name: (part.images, convert(part)) for name, part in folder.parts.items()}
    if val_share and set(parts) == {WHOLE}:
        images, data = parts[WHOLE]
        return {name: (images, each) for name, each in split_at_random(data, val_share).items()}
    return parts


def split_at_random(data: dict[str, Any], val_share: float) -> dict[str, dict[str, Any]]:
    """Split a COCO data set into ``train`` and ``val`` with a fixed seed.

    Args:
        data: the data set.
        val_share: share of the images in ``val``, in (0, 1); both parts get at least one image.

    Raises:
        DatasetError: there are fewer than two images.
    """
    ids = [image["id"] for image in data["images"]]
    if len(ids) < 2:
        raise DatasetError(
            f"the labels have {len(ids)} image(s), too few to split into images for training and "
            "for validation: add more, or give folders train and val"
        )
    count = min(max(1, round(val_share * len(ids))), len(ids) - 1)
    chosen = set(random.Random(0).sample(ids, count))
    keys = {"images": "id", "annotations": "image_id"}
    return {
        name: {
            **data,
            **{
                part: [each for each in data[part] if (each[key] in chosen) == is_val]
                for part, key in keys.items()
            },
        }
        for name, is_val in (("train", False), ("val", True))
    }


def _read(read: Callable[[], Any], stage: Path, originals: Mapping[str, object]) -> Any:
    """Call one of hotcoco's readers; its error messages are made to name what the user knows."""
    try:
        return read().dataset
    except (ValueError, OSError) as error:
        message = str(error)
        for name, original in originals.items():
            message = message.replace(str(stage / name), str(original))
            message = message.replace(name, str(original))
        raise DatasetError(message.removeprefix("parse error: ")) from error


# -------------------------------------------------------------------------------------------- VOC


def _voc_names(folder: LabelFolder) -> list[str]:
    """Return the class names of all parts, in the folder's order if it lists them."""
    found: dict[str, Path] = {}
    for path in sorted({path for part in folder.parts.values() for path in part.labels}):
        for element in _parse_xml(path).iter("object"):
            found.setdefault(_object_name(element, path), path)
    unknown = sorted(set(found) - set(folder.names))
    if folder.names and unknown:
        raise DatasetError(
            f"{found[unknown[0]]} has the class {unknown[0]!r}, which is not among "
            f"{', '.join(folder.names)}"
        )
    return list(folder.names) or sorted(found)


def _object_name(element: ElementTree.Element, path: Path) -> str:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DatasetError(f"{path}: an <object> has no <name>")
    return name


def _parse_xml(path: Path) -> ElementTree.Element:
    try:
        content = read_content(path)
        if b"<!DOCTYPE" in content:
            raise DatasetError(f"{path} declares a DOCTYPE, which annotations do not need: refused")
        tree = ElementTree.fromstring(content)
        if tree.tag != "annotation":
            raise DatasetError(f"{path} holds <{tree.tag[:60]}>, not VOC's <annotation>")
        return tree
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is not readable XML: {error}") from error


def _from_voc(part: Part, *, names: Sequence[str], label_of: dict[Path, Path]) -> dict[str, Any]:
    hotcoco = load_hotcoco(PURPOSE)
    trees = [_parse_xml(path) for path in part.labels]
    by_stem: dict[str, list[Path]] = {}
    for path in find_files(part.images, IMAGE_SUFFIXES):
        by_stem.setdefault(path.stem.lower(), []).append(path)
    images = [_voc_image(part, by_stem, *pair) for pair in zip(part.labels, trees, strict=True)]
    _check_different(images, part.labels, label_of)
    with temporary_folder() as stage:
        # The reader knows plain names only; they are put back below.
        numbers = {name: f"class{number}" for number, name in enumerate(names)}
        (stage / "labels.txt").write_text("\n".join(numbers.values()))
        (stage / "Annotations").mkdir()
        originals: dict[str, object] = {f"`{n}`": f"`{name}`" for name, n in numbers.items()}
        for number, (path, tree) in enumerate(zip(part.labels, trees, strict=True)):
            name = f"Annotations/{number:08d}.xml"
            originals[name] = path
            _set_text(tree, "filename", f"{number:08d}")
            for element in tree.iter("object"):
                _set_text(element, "name", numbers[_object_name(element, path)])
                # The reader would take names and boxes of parts and attributes for the object's.
                for child in [each for each in element if each.tag not in _OF_AN_OBJECT]:
                    element.remove(child)
            try:
                (stage / name).write_bytes(ElementTree.tostring(tree))
            except RecursionError as error:
                raise DatasetError(f"{path}: its elements are nested too deep") from error
        data = _read(lambda: hotcoco.COCO.from_voc(str(stage)), stage, originals)
    data["categories"] = [{"id": n, "name": name} for n, name in enumerate(names, start=1)]
    _rename(data, part, images)
    _check_counts(data, [sum(1 for _ in tree.iter("object")) for tree in trees], part.labels)
    return dict(data)


def _check_different(
    images: Sequence[Path], labels: Sequence[Path], label_of: dict[Path, Path]
) -> None:
    """Refuse two label files of one image: it would count twice, with half of its boxes missing.

    Args:
        images, labels: of one part, in the same order.
        label_of: label files of the images of the parts before; those of this one are added.
    """
    for image, path in zip(images, labels, strict=True):
        other = label_of.setdefault(image, path)
        if other != path:
            raise DatasetError(
                f"{path} and {other} both belong to {image}: correct <filename> in one of them"
            )


def _set_text(tree: ElementTree.Element, name: str, text: str) -> None:
    found = tree.find(name)
    found = ElementTree.SubElement(tree, name) if found is None else found
    found.text = text


def _voc_image(
    part: Part, found: Mapping[str, Sequence[Path]], path: Path, tree: ElementTree.Element
) -> Path:
    """Return the image of an XML file: the one that it names, else the one with its own stem.

    Args:
        part: the XML files and images.
        found: images of the part by stem in lower case.
        path, tree: the XML file.
    """
    named = (tree.findtext("filename") or "").strip()
    root = part.images.resolve()
    exact = part.images / named if "\0" not in named else part.images
    if exact.is_file() and root in exact.resolve().parents:
        return exact
    name = named.replace("\\", "/").rpartition("/")[2].lower()
    images = [p for p in found.get(name.rpartition(".")[0], ()) if p.name.lower() == name]
    images = images or list(found.get(path.stem.lower(), ()))
    images = [p for p in images if root in Path(os.path.realpath(p)).parents]
    if len(images) > 1:  # of one name in several folders: the one beside the XML file's own
        images = [p for p in images if p.parent.name == path.parent.name] or images
    if not images:
        raise DatasetError(f"{path}: its image {named or path.stem!r} is not in {part.images}")
    if len(images) > 1:
        raise DatasetError(
            f"{path}: its image may be {images[0]} or {images[1]}: name it in <filename>, with its "
            f"folder below {part.images}"
        )
    return images[0]


# ------------------------------------------------------------------------------------------- YOLO


def _from_yolo(part: Part, *, names: Sequence[str]) -> dict[str, Any]:
    hotcoco = load_hotcoco(PURPOSE)
    images = part.files
    _check_stems(images)
    lines = [_labels(path) for path in part.labels]
    with temporary_folder() as stage:
        labels, sizes = stage / "labels", stage / "images"
        labels.mkdir()
        sizes.mkdir()
        # hotcoco's YAML reader supports plain names only; the real ones are restored below.
        numbered = "".join(f"  {number}: class{number}\n" for number in range(len(names)))
        (labels / "data.yaml").write_text(f"names:\n{numbered}")
        originals: dict[str, object] = {}
        for number, (path, image) in enumerate(zip(part.labels, images, strict=True)):
            name = f"{number:08d}.txt"
            originals[f"labels/{name}"] = path
            (labels / name).write_text("\n".join(lines[number]))
            # It reads fewer formats than this project, and no EXIF: YOLO's numbers are fractions of
            # the image as it is shown. The head of a PPM file, under any name, has a size alone.
            width, height = _size(image)
            (sizes / f"{number:08d}.png").write_text(f"P6 {width} {height} 255\n")
        read = hotcoco.COCO.from_yolo
        data = _read(lambda: read(str(labels), images_dir=str(sizes)), stage, originals)
    data["categories"] = [{"id": n, "name": name} for n, name in enumerate(names, start=1)]
    _rename(data, part, images)
    _check_counts(data, [sum(bool(line.strip()) for line in each) for each in lines], part.labels)
    return dict(data)


def _labels(path: Path) -> list[str]:
    """Return the lines of a label file; an image without one has no boxes.

    Raises:
        DatasetError: a line is not a box; polygons and keypoints have other numbers of fields.
    """
    lines = read_text(path).splitlines() if os.path.lexists(path) else []
    for number, line in enumerate(lines, start=1):
        count = len(line.split())
        if count not in (0, _FIELDS):
            raise DatasetError(
                f"{path}: line {number} has {count} fields, not the {_FIELDS} of a box (class, "
                "center x and y, width, height): convert polygons and keypoints to boxes, and "
                "leave out confidences"
            )
    return lines


def _check_stems(images: Sequence[Path]) -> None:
    stems: dict[Path, Path] = {}
    for path in images:
        other = stems.setdefault(path.with_suffix(""), path)
        if other != path:
            raise DatasetError(f"{path} and {other} share one label file: rename one of them")


# ------------------------------------------------------------------------------------ both formats


def _rename(data: dict[str, Any], part: Part, images: Sequence[Path]) -> None:
    """Restore the images' file names in the records, and fill in missing sizes."""
    for record in data["images"]:
        path = images[int(record["file_name"])]
        record["file_name"] = path.relative_to(part.images).as_posix()
        if not record["width"] or not record["height"]:
            record["width"], record["height"] = _size(path)


def _size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as it is shown."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            lies = image.getexif().get(_ORIENTATION, 1) in _ON_A_SIDE
    except Exception as error:  # the file may be anything, and Pillow's readers raise anything
        raise DatasetError(f"{path} is not a readable image: {error}") from error
    return (height, width) if lies else (width, height)


def _check_counts(data: dict[str, Any], wanted: Sequence[int], labels: Sequence[Path]) -> None:
    """Check that every object of every label file has become an annotation."""
    if len(data["images"]) != len(labels):
        raise DatasetError(f"{len(labels)} label files gave {len(data['images'])} images")
    found = dict.fromkeys((image["id"] for image in data["images"]), 0)
    for annotation in data["annotations"]:
        found[annotation["image_id"]] += 1
    for (image_id, number), count, path in zip(found.items(), wanted, labels, strict=True):
        if number != count:
            raise DatasetError(
                f"{path} has {count} objects, of which {number} could be read (image {image_id})"
            )
