"""Find and read the files of a folder of labeled images, however it is linked together."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokendetr.errors import DatasetError

__all__ = ["find_files", "read_content", "read_text", "visible"]


def visible(folder: Path, *patterns: str) -> list[Path]:
    """Return what matches some patterns in a folder, sorted and without hidden files.

    Archives made on a Mac hold a hidden ``._`` file beside every other.
    """
    found = (path for pattern in patterns for path in folder.glob(pattern))
    return sorted(path for path in found if not path.name.startswith("."))


def find_files(folder: Path, suffixes: Sequence[str], *, deep: bool = True) -> list[Path]:
    """Return the files of a folder with some suffixes, in any case, sorted.

    Hidden files are left out, as in :func:`visible`; so are folders and pipes with such names.
    Links to nothing are not, for their readers to name.

    Args:
        folder: the folder; it need not exist.
        suffixes: in lower case, with their dots.
        deep: also those of its subfolders, and of folders that links in them lead to.
    """
    paths = _walk(folder, set()) if deep else folder.glob("*")
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and (path.is_file() or not path.exists())
    )


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Yield what is in a folder, at any depth; folders that links lead back to come once."""
    real = os.path.realpath(folder)
    # A link to a folder that holds one of those is a loop as well.
    loops = any(f"{each}{os.sep}".startswith(f"{real}{os.sep}") for each in seen)
    if loops or not os.path.isdir(real):
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir():
            yield from _walk(path, seen)


def read_content(path: Path) -> bytes:
    """Return what is in a file, without waiting for the other end of a pipe.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is a folder, a pipe or a device")
    return path.read_bytes()


def read_text(path: Path) -> str:
    """Return the text of a file that a labeling tool wrote.

    Raises:
        DatasetError: it cannot be read, or is not UTF-8 text.
    """
    try:
        return read_content(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as UTF-8 text: {error}") from error
