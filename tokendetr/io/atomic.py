"""Write files so that a crash or a full disk leaves the old or the whole new one."""

import errno
import logging
import os
import shutil

from tokendetr.errors import CheckpointWriteError

__all__ = ["remove_quietly", "write_atomically"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 24


def write_atomically(path: str, content: bytes | memoryview) -> None:
    """Write a file so that at every moment either the old or the whole new one is there.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is
    renamed; then the folder is flushed.

    Raises:
        CheckpointWriteError: naming file, reason and free space. The temporary file is removed.
    """
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{os.getpid()}.tmp")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, "wb") as file:
            view = memoryview(content)
            for start in range(0, len(view), _CHUNK_BYTES):
                file.write(view[start : start + _CHUNK_BYTES])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        remove_quietly(temporary)
        raise CheckpointWriteError(
            error.errno or errno.EIO, _write_failure(path, len(content), error)
        ) from error
    _flush_folder(folder)


def _write_failure(path: str, size: int, error: OSError) -> str:
    try:
        folder = os.path.dirname(path) or "."
        free = f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are free there"
    except OSError:
        free = "the free space there is unknown"
    kept = (
        "the file that was there before is unchanged"
        if os.path.exists(path)
        else ("no file was left behind")
    )
    return (
        f"cannot write {path} ({size / 2**20:.1f} MiB): {error.strerror or error}; {free}; {kept}. "
        "Free some space or choose another train.output_dir, then start again with --resume"
    )


def remove_quietly(path: str) -> None:
    """Remove a file if that is possible."""
    try:
        os.remove(path)
    except OSError:
        logger.debug("Could not remove %s", path)


def _flush_folder(folder: str) -> None:
    """Make a rename in a folder survive a power failure, where the file system can."""
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
