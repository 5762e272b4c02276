"""Errors of data set mappers that name the record, or the line of code, that is at fault."""

import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokendetr.errors import SampleError

__all__ = ["NamedErrors", "describe_record"]

_READERS = ("PIL", "detectron2", "detrex", "tokendetr")
_INSTALLED = frozenset(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class NamedErrors:
    """Mapper whose errors name the record.

    Args:
        mapper: converts a record to a model's input.
    """

    def __init__(self, mapper: Callable[[Any], Any]) -> None:
        self.mapper = mapper

    def __call__(self, record: Any) -> Any:
        """Map a record.

        Raises:
            SampleError: the mapper raised any error; the message names the record, or the line of
                the user's own code that raised it.
        """
        try:
            return self.mapper(record)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".rstrip(".")
            what = f"{describe_record(record)}: {reason}"
            line = _own_line(error, type(self.mapper))
            if line is not None:
                message = f"the mapper fails on {what}, raised at {line}: mend that code"
            else:
                message = (
                    f"cannot load {what}. Repair the file, or remove its record from the "
                    "annotations; if all records fail, mend the mapper in the config."
                )
            raise SampleError(message) from error


def _own_line(error: Exception, mapper: type) -> str | None:
    """Return file and line of the user's code that an error comes from, or None.

    It comes from what one sees first, from the innermost call outwards: code that reads records, or
    code that is in no installed package or in the mapper's own.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package in _READERS:
            return None
        file = frame.f_code.co_filename
        installed = any(Path(folder) in Path(file).parents for folder in _INSTALLED)
        if not installed or package == mapper.__module__.partition(".")[0]:
            return f"{file}:{line}"
    return None


def describe_record(record: Any) -> str:
    """Return file name and image id of a record, for messages."""
    if not isinstance(record, Mapping) or "file_name" not in record:
        return "a record without a file name"
    return f"{record['file_name']} (image id {record.get('image_id', 'unknown')})"
