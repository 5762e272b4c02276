"""One writer per folder."""

import os
from collections.abc import Callable

from filelock import BaseFileLock, FileLock, Timeout

from tokendetr.errors import RunFolderError

__all__ = ["LOCK_NAME", "lock_folder"]

LOCK_NAME = ".run.lock"


def lock_folder(path: str, owner: Callable[[], str] = lambda: "another process") -> BaseFileLock:
    """Take the lock of a folder, which the operating system releases when its holder ends.

    Args:
        path: an existing folder.
        owner: names the holder where there is one, for the message.

    Returns:
        The lock; release it, or use it as a context manager.

    Raises:
        RunFolderError: another process holds it, or the folder cannot be written to.
    """
    file = os.path.join(path, LOCK_NAME)
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(
            f"{path} is in use: {owner()} writes there now. Wait until it has ended (or end it), "
            "or choose another output folder (of a training: train.output_dir=...); if that "
            f"machine is gone for good, remove {file}"
        ) from error
    except OSError as error:
        raise RunFolderError(
            f"the output folder {path} cannot be written to: {error.strerror or error}"
        ) from error
    return lock
