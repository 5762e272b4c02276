"""Temporary folders whose failures say where they are and what to do."""

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokendetr.errors import CheckpointWriteError, OutputError

__all__ = ["temporary_folder"]

_FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for a ``with`` block, and remove it afterward.

    Raises:
        OutputError: no folder can be made, or it cannot be written to in the block.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="tokendetr-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(
            f"no temporary folder can be made: {error.strerror or error}. Set TMPDIR to a folder "
            "that can be written to"
        ) from error
    with folder as name:
        try:
            yield Path(name)
        except (OutputError, CheckpointWriteError):  # of another file, which they name
            raise
        except OSError as error:
            if error.errno not in _FULL_OR_READ_ONLY or not _is_inside(error, name):
                raise
            raise OutputError(
                f"the temporary folder {name} cannot be written to: {error.strerror}. Free some "
                "space there, or set TMPDIR to another folder"
            ) from error


def _is_inside(error: OSError, folder: str) -> bool:
    """Return whether an error may concern a file of a folder; errors of writing have no name."""
    return error.filename is None or str(error.filename).startswith(folder)
