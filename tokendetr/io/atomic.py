"""Write files so that a crash or a full disk leaves either the old file or the complete new one."""

import errno
import hashlib
import logging
import os
import shutil

from tokendetr.errors import CheckpointWriteError
from tokendetr.io.outputs import creation_fault

__all__ = ["remove_quietly", "write_atomically"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 24
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: str, content: bytes | memoryview) -> None:
    """Replace a file atomically: readers see either the old contents or all of the new.

    Args:
        path: file to write; its folder is created if missing.
        content: the whole contents.

    Raises:
        CheckpointWriteError: the message has file, reason and free space. The temporary file is
            removed, and a file that was there before is unchanged.
    """
    folder = os.path.dirname(path) or "."
    # In the same folder, because a rename is atomic within one file system only. The process id
    # keeps writers of one file apart.
    temporary = os.path.join(folder, f".{_short(os.path.basename(path))}.{os.getpid()}.tmp")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, "wb") as file:
            view = memoryview(content)
            for start in range(0, len(view), _CHUNK_BYTES):
                file.write(view[start : start + _CHUNK_BYTES])
            file.flush()
            # Before the rename: a file system may commit the new name before the data, and a power
            # failure in between would leave an empty or partial file under the final name.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        remove_quietly(temporary)
        raise CheckpointWriteError(
            error.errno or errno.EIO, _write_failure(path, len(content), error)
        ) from error
    _flush_folder(folder)


def _short(name: str) -> str:
    """Return a name that leaves room for more: file systems allow 255 bytes."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= 200 else hashlib.sha256(encoded).hexdigest()


def _write_failure(path: str, size: int, error: OSError) -> str:
    try:
        folder = os.path.dirname(path) or "."
        free = f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are free there"
    except OSError:
        free = "the free space there is unknown"
    kept = (
        "the file that was there before is unchanged"
        if os.path.isfile(path)
        else ("no file was left behind")
    )
    way_out = "Free some space or choose" if error.errno in _FULL else "Choose"
    return (
        f"cannot write {path} ({size / 2**20:.1f} MiB): {creation_fault(error)}; {free}; {kept}. "
        f"{way_out} another folder (of a training: train.output_dir), then start again; continue a "
        "training with --resume"
    )


def remove_quietly(path: str) -> None:
    """Remove a file; log instead of raising if that fails."""
    try:
        os.remove(path)
    except OSError:
        logger.debug("Could not remove %s", path)


def _flush_folder(folder: str) -> None:
    """Make a rename in a folder survive a power failure, if the file system supports that.

    A rename changes the folder, not the file: until the folder itself is flushed, a power failure
    may bring back the old entry. That is harmless for one file, but not for two in order, such as a
    checkpoint and then the pointer to it. Failures are ignored, as some file systems cannot open
    or flush a folder, and the file itself is complete.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        logger.debug("Could not flush folder %s", folder)
    finally:
        os.close(handle)
