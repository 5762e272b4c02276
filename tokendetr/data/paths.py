"""Find the folder of data sets; check that file names stay inside the folder they belong to."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tokendetr.errors import DatasetError

__all__ = ["Folders", "datasets_root", "resolve_fault"]

_VARIABLE = "DETECTRON2_DATASETS"


def datasets_root() -> Path:
    """Return the folder of the built-in data sets, ``$DETECTRON2_DATASETS`` or ``./datasets``.

    It need not exist: a data set that is drawn makes it.

    Raises:
        DatasetError: the variable cannot be meant: it names a file; or nothing that exists, and has
            a space at an end or several paths.
    """
    value = os.environ.get(_VARIABLE, "") or "datasets"
    root = Path(os.path.expanduser(value))
    fault = ""
    if root.exists() and not root.is_dir():
        fault = "is a file"
    elif value != value.strip() and not root.exists():
        fault = "begins or ends with a space"
    elif os.pathsep in value and not root.exists():
        fault = "has several paths"
    if fault:
        raise DatasetError(f"{_VARIABLE}={value!r} {fault}: set it to the folder of the data sets")
    return root


class Folders:
    """Cached listing of the folders below an image root; each is read once.

    One listing per folder replaces several system calls per file, which are slow on network file
    systems.

    Args:
        root: the image root, symbolic links resolved.
        allowed: further folders that symbolic links below the root may lead to; one or several.
    """

    def __init__(self, root: str, allowed: Sequence[str] = ()) -> None:
        self.root = root
        allowed = [allowed] if isinstance(allowed, str) else allowed
        self.roots = [root, *(os.path.realpath(os.path.expanduser(path)) for path in allowed)]
        # folder -> name -> whether it is a symbolic link; None: no such folder inside the root
        self._listed: dict[str, dict[str, bool] | None] = {}

    def fault(self, name: str) -> str:
        """Return what is wrong with a file name, "" if nothing is."""
        if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            return f"file_name {name!r} leaves the image folder"
        folder, _, last = name.rpartition("/")
        entries = self._entries(folder)
        if entries is None:
            return _leaves(name)
        if last not in entries:
            near = [entry for entry in entries if _spelling(entry) == _spelling(last)]
            hint = f" (but {near[0]!r}, in another spelling, does)" if near else ""
            return f"the file {os.path.join(self.root, name)} does not exist{hint}"
        if entries[last]:
            return resolve_fault(self.root, name, self.roots)
        return ""

    def _entries(self, folder: str) -> dict[str, bool] | None:
        if folder not in self._listed:
            path = os.path.realpath(os.path.join(self.root, folder))
            if not any(_is_inside(path, root) for root in self.roots):
                self._listed[folder] = None
            elif not os.path.isdir(path):
                self._listed[folder] = {}
            else:
                with os.scandir(path) as entries:
                    # Neither a folder nor a device or socket is an image.
                    self._listed[folder] = {
                        e.name: e.is_symlink() for e in entries if e.is_symlink() or e.is_file()
                    }
        return self._listed[folder]


def _spelling(name: str) -> str:
    """Return a file's name as people read it: without its suffix, in one case and composition."""
    return unicodedata.normalize("NFKC", os.path.splitext(name)[0]).casefold()


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _leaves(name: str) -> str:
    return (
        f"file_name {name!r} leaves the image folder through a symbolic link; name the folder it "
        "leads to in train.image_roots=[...] to allow it"
    )


def resolve_fault(root: str, name: str, allowed: Sequence[str] = ()) -> str:
    """Return what is wrong with a file name once symbolic links are resolved, "" if nothing is.

    Args:
        root: the image root.
        name: file name relative to it.
        allowed: further folders that links may lead to, symbolic links resolved.
    """
    path = os.path.realpath(os.path.join(root, name))
    if not any(_is_inside(path, folder) for folder in (os.path.realpath(root), *allowed)):
        return _leaves(name)
    return "" if os.path.isfile(path) else f"the file {path} does not exist"
