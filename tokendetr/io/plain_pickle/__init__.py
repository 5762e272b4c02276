"""Read pickles of weights without unpickling them.

Published ``.pkl`` weights are pickles of dicts of numpy arrays. Python's unpickler builds whatever
objects a file asks for, and an allow-list of classes is no protection: a crafted state for
``numpy.dtype`` suffices to have raw bytes taken for a pointer. So this module interprets the
opcodes itself. It supports numbers, text, bytes, containers, and the few calls by which numpy
describes plain numeric arrays. Names in the file are only compared, never looked up, and every
length, index and total is checked against the size of the file before memory is allocated.

The module needs only the standard library and numpy: ``tokendetr`` and, through a symbolic link,
the stand-in for detectron2 read with it, and the stand-in must not import ``tokendetr``.

Source: the opcodes are those of CPython's ``pickletools``, protocols 0 to 5.
"""

from typing import Any, BinaryIO

from .machine import Machine
from .values import Damaged, Refused

__all__ = ["PlainPickleError", "load_arrays"]


class PlainPickleError(ValueError):
    """A pickle that cannot be read as plain data; nothing in it was executed.

    Attributes:
        is_unsafe: True if it asks for objects other than plain data, False if it is damaged.
    """

    def __init__(self, message: str, *, is_unsafe: bool = False) -> None:
        super().__init__(message)
        self.is_unsafe = is_unsafe


def load_arrays(file: BinaryIO, filename: str) -> Any:
    """Read plain data: dicts, lists, tuples, sets, numbers, text, bytes and numeric arrays.

    Byte strings of Python 2 become text, decoded as Latin-1.

    Args:
        file: opened in binary mode; read to its end.
        filename: for messages.

    Returns:
        The data; arrays are writable, contiguous or Fortran-ordered, and in native byte order.

    Raises:
        PlainPickleError: the file is damaged or asks for other objects; nothing was executed.
    """
    try:
        return Machine(file.read()).run()
    except Refused as error:
        raise PlainPickleError(
            f"{filename} is not a plain checkpoint and was refused: it refers to {error}. A .pkl "
            "file of weights may hold dicts, numbers, text and numpy arrays of numbers only, "
            "because unpickling anything else can run code. Nothing was executed.",
            is_unsafe=True,
        ) from error
    except Damaged as error:
        raise PlainPickleError(
            f"{filename} is not a plain checkpoint and was not loaded: it is damaged or is no "
            f"pickle ({error})."
        ) from error
