"""File names that stay inside the folder they belong to."""

import os

__all__ = ["Folders", "resolve_fault"]


class Folders:
    """What is in the folders of an image root; each folder is read once."""

    def __init__(self, root: str) -> None:
        self.root = root
        # folder -> name -> whether it is a symbolic link; None: no such folder inside the root
        self._listed: dict[str, dict[str, bool] | None] = {}

    def fault(self, name: str) -> str:
        """What is wrong with a file name, or ""."""
        if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            return f"file_name {name!r} leaves the image folder"
        folder, _, last = name.rpartition("/")
        entries = self._entries(folder)
        if entries is None:
            return f"file_name {name!r} leaves the image folder through a symbolic link"
        if last not in entries:
            return f"the file {os.path.join(self.root, name)} does not exist"
        if entries[last]:
            return resolve_fault(self.root, name)
        return ""

    def _entries(self, folder: str) -> dict[str, bool] | None:
        if folder not in self._listed:
            path = os.path.realpath(os.path.join(self.root, folder))
            if not _is_inside(path, self.root):
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


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def resolve_fault(root: str, name: str) -> str:
    """What is wrong with a file name below ``root`` once links are followed, or ""."""
    path = os.path.realpath(os.path.join(root, name))
    if not _is_inside(path, os.path.realpath(root)):
        return f"file_name {name!r} leaves the image folder through a symbolic link"
    return "" if os.path.isfile(path) else f"the file {path} does not exist"
