"""Lock a folder, so that only one process writes to it."""

import errno
import logging
import os
from collections.abc import Callable

from filelock import BaseFileLock, FileLock, Timeout

from tokendetr.errors import RunFolderError

__all__ = ["LOCK_NAME", "lock_folder"]

LOCK_NAME = ".run.lock"

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock_folder(path: str, owner: Callable[[], str] = lambda: "another process") -> BaseFileLock:
    """Acquire the lock of a folder.

    The operating system releases it when its holder ends, even if that is killed. So the next
    process takes over by acquiring it, and there is nothing to clean up.

    Args:
        path: an existing folder.
        owner: returns the name of the current holder, for the message.

    Returns:
        The lock; release it, or use it as a context manager. On file systems without locks (some
        of clusters) it holds nothing, and a warning says so.

    Raises:
        RunFolderError: another process holds it, or the folder cannot be written to.
    """
    file = os.path.join(path, LOCK_NAME)
    # No process id or age is compared: an id may be reused or be of another machine, and a paused
    # process is not dead. A lock file may remain; only the kernel's lock on it counts.
    # thread_local=False, so that any thread of this process may release it.
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(
            f"{path} is in use: {owner()} writes there now. Wait until it has ended (or end it), "
            "or choose another output folder (of a training: train.output_dir=...); if that "
            f"machine is gone for good, remove {file}"
        ) from error
    except NotImplementedError:
        _warn(path)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _warn(path)
            return lock
        raise RunFolderError(
            f"the output folder cannot be written to: {file}: {error.strerror or error}"
        ) from error
    return lock


def _warn(path: str) -> None:
    logger.warning(
        "The file system of %s has no locks: make sure yourself that nothing else writes there",
        path,
    )
