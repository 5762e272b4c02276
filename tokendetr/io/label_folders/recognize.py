"""Recognize the label format of a folder, and which of its files belong to which split."""

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from tokendetr.errors import DatasetError
from tokendetr.io.images import IMAGE_SUFFIXES
from tokendetr.io.label_folders.find import find_files, read_content, read_text, visible
from tokendetr.io.label_folders.parts import (
    SPLITS,
    WHOLE,
    LabelFolder,
    Part,
    by_split,
    split_folders,
    split_of,
)
from tokendetr.io.label_folders.yolo import read_yolo

__all__ = ["KINDS", "recognize"]

logger = logging.getLogger(__name__)

KINDS = ("coco", "voc", "yolo")
_IMAGE_FOLDERS = ("jpegimages", "images")
_OF_A_CLASS = re.compile(r"\S+\s+(-1|0|1)")  # a line of VOC's lists per class


def recognize(folder: str | Path, kind: str = "auto") -> LabelFolder:
    """Recognize the label format of a folder, and its splits.

    * COCO: JSON files in the folder, in ``annotations``, or in one folder per split.
    * Pascal VOC: ``Annotations`` beside ``JPEGImages`` or ``images``, split by ``ImageSets/Main``
      or by subfolders of ``Annotations``; or XML files beside the images, also in one folder per
      split. Names of these folders, and suffixes, may have any case.
    * YOLO: ``data.yaml`` with ``images`` and ``labels``, above or below one folder per split; or
      split by the folders or lists of images that ``data.yaml`` names.

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
    readers = {"coco": _coco, "voc": _voc, "yolo": read_yolo}
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
    parts = by_split(_coco_parts(root))
    return LabelFolder(root, "coco", parts) if parts else None


def _coco_parts(root: Path) -> Iterator[tuple[str, Path, Part]]:
    files = visible(root, "*.json", "annotations/*.json", "*/*.coco.json")
    # COCO's own folder has captions and keypoints of the same images beside them.
    for path in [p for p in files if p.name.startswith("instances_")] or files:
        status = path.stat()
        images = _coco_images(path, status.st_mtime_ns, status.st_size)
        if images is not None:
            named = path.parent.name if path.name.startswith("_annotations") else path.stem
            yield split_of(named) or named, path, Part(_coco_root(root, path, images), [path])


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
    found = ((split, folder, _voc_part(folder)) for split, folder in split_folders(root))
    parts = by_split((split, folder, part) for split, folder, part in found if part is not None)
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
    # CVAT lists images with their folder.
    by_stem |= {f"{path.parent.name}/{path.stem}": path for path in whole.labels}
    for path in visible(root / "ImageSets" / "Main", "*.txt"):
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        stems = list(dict.fromkeys(lines))
        missing = [stem for stem in stems if stem not in by_stem]
        if stems == missing and all(_OF_A_CLASS.fullmatch(stem) for stem in stems):
            continue
        if len(stems) < len(lines):
            logger.warning("%s lists %d images twice", path, len(lines) - len(stems))
        if missing:
            raise DatasetError(
                f"{path} lists {missing[0]!r}, of which there is no XML file "
                f"({len(missing)} of {len(stems)} lines)"
            )
        yield path.stem, Part(whole.images, [by_stem[stem] for stem in stems])


def _voc_subfolders(whole: Part) -> dict[str, Part]:
    """Return a part for each folder that is named like a split, if all XML files are in such."""
    labels: dict[str | None, list[Path]] = {}
    for path in whole.labels:
        labels.setdefault(SPLITS.get(path.parent.name.lower()), []).append(path)
    if None in labels:
        return {}
    return {str(split): Part(whole.images, paths) for split, paths in labels.items()}


def _subfolder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first subfolder with one of some names, which are in lower case."""
    found = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    return next((found[name] for name in names if name in found), None)
