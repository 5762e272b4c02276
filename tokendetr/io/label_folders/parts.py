"""A folder of labeled images whose format was recognized, and its splits."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokendetr.errors import DatasetError

__all__ = ["SPLITS", "WHOLE", "LabelFolder", "Part", "by_split", "split_folders", "split_of"]

WHOLE = "all"
"""Name of the single part of a folder that is not split."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Splits by the names of their files and folders."""


@dataclass(frozen=True)
class Part:
    """The images and labels of one split.

    Attributes:
        images: folder of the images.
        labels: one COCO JSON, or the XML or text files, sorted. YOLO has one path per image, which
            need not exist: an image without a label file has no boxes.
        files: YOLO's images, in the order of ``labels``.
    """

    images: Path
    labels: Sequence[Path]
    files: Sequence[Path] = ()


@dataclass(frozen=True)
class LabelFolder:
    """A folder whose label format was recognized.

    Attributes:
        root: the folder.
        kind: ``coco``, ``voc`` or ``yolo``.
        parts: by name: ``train``, ``val``, ``test``, the names of VOC's lists, or ``all``.
        names: class names in order if a file of the folder lists them, else empty.
    """

    root: Path
    kind: str
    parts: dict[str, Part]
    names: Sequence[str] = ()


def by_split(found: Iterable[tuple[str, Path, Part]]) -> dict[str, Part]:
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


def split_of(name: str) -> str | None:
    """Return the split in a file's or folder's name, such as ``val`` of ``instances_val2017``."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def split_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the folders in another that are named like splits, with their splits."""
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and (split := split_of(folder.name)):
            yield split, folder
