"""YOLO's folders of labeled images: a text file per image, and a data.yaml.

The splits are those of folders named ``train``, ``val`` or ``test``, else those that ``data.yaml``
names: folders, or text files with a path per line, as the paths of images in ``images``.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tokendetr.errors import DatasetError
from tokendetr.io.images import IMAGE_SUFFIXES
from tokendetr.io.label_folders.find import find_files, read_text, visible
from tokendetr.io.label_folders.parts import (
    SPLITS,
    WHOLE,
    LabelFolder,
    Part,
    by_split,
    split_folders,
)
from tokendetr.io.plain_yaml import load_plain_yaml

__all__ = ["read_yolo"]

logger = logging.getLogger(__name__)


def read_yolo(root: Path) -> LabelFolder | None:
    """Return the labels of a folder; None if it has none of this format.

    Raises:
        DatasetError: a file cannot be read, or something is missing; the message says which.
    """
    found = sorted(visible(root, "*.yaml", "*.yml"), key=lambda path: path.stem != "data")
    described = ((path, _content(path)) for path in found)
    path, content = next(((p, c) for p, c in described if c.get("names")), (root, {}))
    names = _names(path, content)
    for listed in (root / "classes.txt", root / "labels" / "classes.txt"):
        if not names and listed.is_file():
            names = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
    parts = by_split((split, p.images, p) for split, p in _parts(root) if p.labels)
    if set(parts) == {WHOLE}:
        parts = _described_parts(path, content, parts[WHOLE]) or parts
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


def _content(path: Path) -> Mapping[Any, Any]:
    try:
        content = load_plain_yaml(read_text(path), str(path))
    except ValueError as error:
        raise DatasetError(str(error)) from error
    return content if isinstance(content, dict) else {}


def _names(path: Path, content: Mapping[Any, Any]) -> list[str]:
    """Return the class names of a data.yaml, in order; [] for other files."""
    names = content.get("names")
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


def _parts(root: Path) -> Iterator[tuple[str, Part]]:
    below_images = list(split_folders(root / "images"))
    for split, folder in below_images:
        yield split, _part(folder, root / "labels" / folder.name)
    for split, folder in split_folders(root):
        if (folder / "images").is_dir():
            yield split, _part(folder / "images", folder / "labels")
    if below_images:
        _warn_of_images_beside(root / "images", {folder for _, folder in below_images})
    elif (root / "labels").is_dir():
        yield WHOLE, _part(root / "images", root / "labels")


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


def _part(images: Path, labels: Path) -> Part:
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
    return Part(images, [present.get(path, path) for path in wanted], files)


def _described_parts(path: Path, content: Mapping[Any, Any], whole: Part) -> dict[str, Part]:
    """Return the splits that a data.yaml makes of a folder's images; {} if it makes none.

    Raises:
        DatasetError: a list cannot be read, or has a path that is no image of the folder.
    """
    places: dict[str, list[int]] = {}
    for key, split in SPLITS.items():
        found = {n for entry in _entries(path, content, key) for n in _places(entry, path, whole)}
        if found:
            places[split] = sorted(found)
    if all(len(found) == len(whole.files) for found in places.values()):
        return {}
    return {
        split: Part(
            whole.images,
            [whole.labels[place] for place in found],
            [whole.files[place] for place in found],
        )
        for split, found in places.items()
    }


def _entries(path: Path, content: Mapping[Any, Any], key: str) -> Iterator[Path]:
    """Yield the folders and lists of images that a data.yaml names under a key, if they exist."""
    named = content.get(key) or []
    base = path.parent / str(content.get("path") or "")
    for entry in named if isinstance(named, list) else [named]:
        candidates = (base / str(entry), path.parent / str(entry))
        yield from [place for place in candidates if place.exists()][:1]


def _places(entry: Path, path: Path, whole: Part) -> Sequence[int]:
    """Return the positions of the images of a folder, or of a list of images, in a folder's."""
    place_of = {os.path.realpath(file): place for place, file in enumerate(whole.files)}
    place_of |= {os.path.abspath(file): place for place, file in enumerate(whole.files)}
    if entry.is_dir():
        folders = {os.path.abspath(entry), os.path.realpath(entry)}
        found = [n for file, n in place_of.items() if folders & set(map(str, Path(file).parents))]
    else:
        lines = [line.strip() for line in read_text(entry).splitlines()]
        found = [_place(line, entry, path, place_of) for line in lines if line]
    if not found:
        logger.warning(
            "%s names %s, which has no image of %s and is left out", path, entry, whole.images
        )
    return found


def _place(line: str, entry: Path, path: Path, place_of: Mapping[str, int]) -> int:
    for base in (entry.parent, path.parent):
        place = place_of.get(os.path.abspath(base / line))
        if place is not None:
            return place
    raise DatasetError(f"{entry} lists {line!r}, which is no image below {path.parent / 'images'}")
