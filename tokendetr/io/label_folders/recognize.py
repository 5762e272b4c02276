"""Recognize the label format of a folder, and which of its files belong to which split."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokendetr.errors import DatasetError
from tokendetr.io.images import IMAGE_SUFFIXES
from tokendetr.io.label_folders.find import find_files, read_content, read_text
from tokendetr.io.plain_yaml import load_plain_yaml

__all__ = ["KINDS", "WHOLE", "LabelFolder", "Part", "recognize"]

logger = logging.getLogger(__name__)

KINDS = ("coco", "voc", "yolo")
WHOLE = "all"
"""Name of the single part of a folder that is not split."""

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_IMAGE_FOLDERS = ("jpegimages", "images")


@dataclass(frozen=True)
class Part:
    """The images and labels of one split.

    Attributes:
        images: folder of the images.
        labels: one COCO JSON, or the XML or text files, sorted. YOLO has one path per image, which
            need not exist: an image without a label file has no boxes.
    """

    images: Path
    labels: Sequence[Path]


@dataclass(frozen=True)
class LabelFolder:
    """A folder whose label format was recognized.

    Attributes:
        root: the folder.
        kind: one of :data:`KINDS`.
        parts: by name: ``train``, ``val``, ``test``, the names of VOC's lists, or ``all``.
        names: class names in order if a file of the folder lists them, else empty.
    """

    root: Path
    kind: str
    parts: dict[str, Part]
    names: Sequence[str] = ()


def recognize(folder: str | Path, kind: str = "auto") -> LabelFolder:
    """Recognize the label format of a folder, and its splits.

    * COCO: JSON files in the folder, in ``annotations``, or in one folder per split.
    * Pascal VOC: ``Annotations`` beside ``JPEGImages`` or ``images``, split by ``ImageSets/Main``
      or by subfolders of ``Annotations``; or XML files beside the images, also in one folder per
      split. Names of these folders, and suffixes, may have any case.
    * YOLO: ``data.yaml`` with ``images`` and ``labels``, above or below one folder per split.

    Args:
        folder: the folder.
        kind: one of :data:`KINDS`, or "auto" to try each.

    Raises:
        FileNotFoundError: there is no such folder.
        DatasetError: no format is recognized, or a file cannot be read; the message says which.
    """
    root = Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise FileNotFoundError(f"the data folder {str(folder)!r} does not exist")
    readers = {"coco": _coco, "voc": _voc, "yolo": _yolo}
    if kind not in ("auto", *KINDS):
        raise DatasetError(f"unknown kind of labels {kind!r}: use auto, {', '.join(KINDS)}")
    for name in KINDS if kind == "auto" else (kind,):
        found = readers[name](root)
        if found is not None:
            return found
    wanted = "COCO JSON, Pascal VOC XML or YOLO" if kind == "auto" else kind.upper()
    raise DatasetError(
        f"{root} has no {wanted} labels in a known layout: *.json with images, annotations and "
        "categories; or Annotations/*.xml beside JPEGImages; or data.yaml with images/ and labels/"
    )


# ------------------------------------------------------------------------------------------- COCO


def _coco(root: Path) -> LabelFolder | None:
    parts = _by_split(_coco_parts(root))
    return LabelFolder(root, "coco", parts) if parts else None


def _coco_parts(root: Path) -> Iterator[tuple[str, Path, Part]]:
    files = [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/*.coco.json")]
    for path in sorted(files):
        status = path.stat()
        images = _coco_images(path, status.st_mtime_ns, status.st_size)
        if images is not None:
            named = path.parent.name if path.name.startswith("_annotations") else path.stem
            yield _split(named) or named, path, Part(_coco_root(root, path, images), [path])


@lru_cache(maxsize=64)
def _coco_images(path: Path, changed_ns: int, size: int) -> str | None:
    """Return the name of a COCO JSON's first image ("" if it has none), None for other files.

    Large files take seconds to parse, and a run asks several times. ``changed_ns`` and ``size``
    only serve as keys of the cache.
    """
    try:
        data = json.loads(read_content(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not readable JSON: {error}") from error
    has_keys = isinstance(data, dict) and {"images", "annotations", "categories"} <= set(data)
    if not has_keys or not isinstance(data["images"], list):
        return None
    names = (image.get("file_name") for image in data["images"] if isinstance(image, dict))
    return str(next(names, ""))


def _coco_root(root: Path, path: Path, first: str) -> Path:
    split = path.stem.rpartition("_")[2]
    candidates = [
        path.parent,
        root / "images" / split,
        root / "images",
        root / split,
        root / path.stem,
        root,
    ]
    for candidate in candidates:
        if first and (candidate / first).is_file():
            return candidate
    raise DatasetError(
        f"{path}: its first image {first!r} is in none of "
        f"{', '.join(dict.fromkeys(map(str, candidates)))}"
    )


# -------------------------------------------------------------------------------------------- VOC


def _voc(root: Path) -> LabelFolder | None:
    listed = root / "labels.txt"
    names = read_text(listed).split("\n") if listed.is_file() else []
    names = [name.strip() for name in names if name.strip()]
    whole = _voc_part(root)
    if whole is not None:
        parts = dict(_voc_lists(root, whole)) or _voc_subfolders(whole) or {WHOLE: whole}
        return LabelFolder(root, "voc", parts, names)
    found = ((split, folder, _voc_part(folder)) for split, folder in _split_folders(root))
    parts = _by_split((split, folder, part) for split, folder, part in found if part is not None)
    return LabelFolder(root, "voc", parts, names) if parts else None


def _voc_part(folder: Path) -> Part | None:
    annotations = _subfolder(folder, ("annotations",))
    files = [] if annotations is None else find_files(annotations, (".xml",))
    files = files or find_files(folder, (".xml",), deep=False)
    if not files:
        return None
    images = _subfolder(folder, _IMAGE_FOLDERS) or folder
    stems = {path.stem.lower() for path in files}
    unlabeled = [p for p in find_files(images, IMAGE_SUFFIXES) if p.stem.lower() not in stems]
    if unlabeled:
        logger.warning(
            "%d images of %s have no XML file and are left out, such as %s",
            len(unlabeled),
            images,
            unlabeled[0],
        )
    return Part(images, files)


def _voc_lists(root: Path, whole: Part) -> Iterator[tuple[str, Part]]:
    """Yield the splits of ``ImageSets/Main``; lists per class, with two columns, are skipped."""
    by_stem = {path.stem: path for path in whole.labels}
    for path in sorted((root / "ImageSets" / "Main").glob("*.txt")):
        lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
        if not lines or any(len(line) != 1 for line in lines):
            continue
        stems = list(dict.fromkeys(line[0] for line in lines))
        if len(stems) < len(lines):
            logger.warning("%s lists %d images twice", path, len(lines) - len(stems))
        missing = [stem for stem in stems if stem not in by_stem]
        if missing:
            raise DatasetError(
                f"{path} lists {missing[0]!r}, of which there is no XML file "
                f"({len(missing)} of {len(stems)} lines)"
            )
        yield path.stem, Part(whole.images, [by_stem[stem] for stem in stems])


def _voc_subfolders(whole: Part) -> dict[str, Part]:
    """Return a part for each folder that is named like a split, if all XML files are in such."""
    by_split: dict[str | None, list[Path]] = {}
    for path in whole.labels:
        by_split.setdefault(_SPLITS.get(path.parent.name.lower()), []).append(path)
    if None in by_split:
        return {}
    return {str(split): Part(whole.images, paths) for split, paths in by_split.items()}


# ------------------------------------------------------------------------------------------- YOLO


def _yolo(root: Path) -> LabelFolder | None:
    found = sorted([*root.glob("*.yaml"), *root.glob("*.yml")], key=lambda p: p.stem != "data")
    names = next((names for path in found if (names := _yolo_names(path))), [])
    for listed in (root / "classes.txt", root / "labels" / "classes.txt"):
        if not names and listed.is_file():
            names = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
    parts = _by_split((split, p.images, p) for split, p in _yolo_parts(root) if p.labels)
    without = [name for name, part in parts.items() if not any(p.exists() for p in part.labels)]
    if parts and not names and len(without) < len(parts):
        raise DatasetError(
            f"{root} has label files of YOLO, but no data.yaml with names: [...] and no classes.txt"
        )
    if not names or not parts:
        return None
    if len(without) == len(parts):
        raise DatasetError(f"{root} has images, but no label file (labels/*.txt) for any of them")
    for name in without:
        logger.warning("%s: no image of the split %r has a label file", root, name)
    return LabelFolder(root, "yolo", parts, names)


def _yolo_names(path: Path) -> list[str]:
    """Return the class names of a data.yaml, in order; [] for other files."""
    try:
        content = load_plain_yaml(read_text(path), str(path))
    except ValueError as error:
        raise DatasetError(str(error)) from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DatasetError(f"{path}: names must be numbered 0 to {len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        return []
    # YAML reads yes, no, on and off as booleans.
    bad = [name for name in names if not isinstance(name, (str, int)) or isinstance(name, bool)]
    if bad:
        raise DatasetError(f"{path}: {bad[0]!r} among its names is not a name: write it in quotes")
    count = content.get("nc", len(names))
    if names and count != len(names):
        raise DatasetError(f"{path}: nc is {count!r}, but there are {len(names)} names")
    return [str(name) for name in names]


def _yolo_parts(root: Path) -> Iterator[tuple[str, Part]]:
    split_folders = list(_split_folders(root / "images"))
    for split, folder in split_folders:
        yield split, _yolo_part(folder, root / "labels" / folder.name)
    for split, folder in _split_folders(root):
        if (folder / "images").is_dir():
            yield split, _yolo_part(folder / "images", folder / "labels")
    if split_folders:
        _warn_of_images_beside(root / "images", {folder for _, folder in split_folders})
    elif (root / "labels").is_dir():
        yield WHOLE, _yolo_part(root / "images", root / "labels")


def _warn_of_images_beside(images: Path, splits: Set[Path]) -> None:
    """Warn of images in a folder that are in none of its subfolders of splits."""
    found = find_files(images, IMAGE_SUFFIXES)
    beside = [path for path in found if splits.isdisjoint(path.parents)]
    if beside:
        logger.warning(
            "%d images of %s are in no folder of a split and are left out, such as %s",
            len(beside),
            images,
            beside[0],
        )


def _yolo_part(images: Path, labels: Path) -> Part:
    files = find_files(images, IMAGE_SUFFIXES)
    present = {path.with_suffix(".txt"): path for path in find_files(labels, (".txt",))}
    wanted = [labels / path.relative_to(images).with_suffix(".txt") for path in files]
    strays = sorted(set(present) - set(wanted) - {labels / "classes.txt"})
    if strays:
        logger.warning(
            "%d label files belong to no image of %s and are left out, such as %s",
            len(strays),
            images,
            strays[0],
        )
    return Part(images, [present.get(path, path) for path in wanted])


# ------------------------------------------------------------------------------------------ splits


def _by_split(found: Iterable[tuple[str, Path, Part]]) -> dict[str, Part]:
    """Return parts by split, from (split, its file or folder, part).

    Raises:
        DatasetError: two are of one split.
    """
    parts: dict[str, Part] = {}
    places: dict[str, Path] = {}
    for split, place, part in found:
        if split in parts:
            raise DatasetError(
                f"{place} and {places[split]} are both the split {split!r}: keep one of them, or "
                "merge them"
            )
        parts[split], places[split] = part, place
    return parts


def _split(name: str) -> str | None:
    """Return the split in a file's or folder's name, such as ``val`` of ``instances_val2017``."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _subfolder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first subfolder with one of some names, which are in lower case."""
    found = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    return next((found[name] for name in names if name in found), None)


def _split_folders(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and (split := _split(folder.name)):
            yield split, folder
