"""Choose and check output files: no tool overwrites an input or writes two outputs to one file."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path

from tokendetr.errors import OutputError

__all__ = [
    "DrawingNames",
    "check_output_file",
    "check_output_folder",
    "creation_fault",
    "drawing_names",
]


class DrawingNames:
    """Give each drawing a distinct file name in a folder.

    A drawing is named after its input's stem. If several inputs share a stem, the later ones get
    their extension and then a number as well (``a.jpg``, ``a_png.jpg``, ``a_png_2.jpg``). Names
    that differ in case or Unicode's form alone count as equal, as they are on some disks.

    Args:
        folder: where the drawings go.
        suffix: end of every name, such as ``.jpg``.
        inputs: files that must not be overwritten, if they are known in advance.
    """

    def __init__(self, folder: Path, suffix: str, inputs: Iterable[Path] = ()) -> None:
        self._folder = folder
        self._suffix = suffix
        self._inputs = set(map(_identity, inputs))
        self._taken: set[str] = set()

    def of(self, path: Path) -> Path:
        """Return the file for the drawing of an input.

        Raises:
            OutputError: it would overwrite an input.
        """
        self._inputs.add(_identity(path))
        kind = path.suffix.lstrip(".").lower() or "file"
        stems = chain(
            (path.stem, f"{path.stem}_{kind}"), (f"{path.stem}_{kind}_{n}" for n in count(2))
        )
        names = (self._folder / f"{stem}{self._suffix}" for stem in stems)
        target = next(name for name in names if _folded(name) not in self._taken)
        if _identity(target) in self._inputs:
            raise OutputError(
                f"the drawing of {path} would replace the input {target}: choose another folder"
            )
        self._taken.add(_folded(target))
        return target


def drawing_names(inputs: Sequence[Path], folder: Path, suffix: str) -> list[Path]:
    """Return a file in a folder for the drawing of each input (:class:`DrawingNames`).

    Raises:
        OutputError: a drawing would overwrite one of the inputs.
    """
    names = DrawingNames(folder, suffix, inputs)
    return [names.of(path) for path in inputs]


def check_output_file(path: str, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Check, before any work, that a file can be written and is none of the inputs.

    Args:
        path: the file to write; its folder is created if missing.
        inputs: files that will be read.

    Raises:
        OutputError: the path is a folder or one of the inputs, or its folder is not writable.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file in it")
    if _identity(target) in {_identity(Path(each)) for each in inputs}:
        raise OutputError(f"{path} is an input and would be replaced: give another name")
    try:
        check_output_folder(str(target.parent))
    except OutputError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def check_output_folder(path: str) -> None:
    """Check, before any work, that a folder is writable; create it if missing.

    Raises:
        OutputError: the path is a file, or the folder cannot be created or written to.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be a folder: {creation_fault(error)}") from error
    if not os.access(path, os.W_OK):
        raise OutputError(f"{path} is a folder without permission to write")


def creation_fault(error: OSError) -> str:
    """Return why a file or folder could not be created, where the system's own words mislead."""
    path = Path(error.filename or "")
    links = (each for each in (path, *path.parents) if each.is_symlink() and not each.exists())
    if link := next(links, None):
        return f"{link} is a link to {os.readlink(link)}, which is missing"
    if isinstance(error, FileExistsError) and path.is_file():
        return f"{path} is a file"
    return error.strerror or str(error)


def _folded(path: Path) -> str:
    """Return a name that is equal for files which are one on some disks."""
    return unicodedata.normalize("NFC", path.name).casefold()


def _identity(path: Path) -> tuple[int, int] | str:
    """Return a value that is equal for all names of a file: links, and other spellings."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # it is not there, or no path at all
        return os.path.realpath(str(path).partition("\0")[0])
    return found.st_dev, found.st_ino
