"""Numeric arrays, and the descriptions by which a pickle builds them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "MARK",
    "ArrayShell",
    "Budget",
    "Damaged",
    "Name",
    "NumericType",
    "Refused",
    "as_bytes",
    "byte_order",
    "checked_key",
    "make_array",
]

NUMERIC_TYPES = frozenset(
    ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
)
MARK = object()
"""What opcode MARK puts on the stack, below the items that a later opcode collects."""

_MAX_DIMENSION = 1 << 31
_KEY_TYPES = (str, bytes, int, float, type(None))


class Refused(Exception):
    """The pickle asks for something other than plain data."""


class Damaged(Exception):
    """The pickle is malformed."""


class Budget:
    """Limit on the data copied while reading, so that shared values cannot multiply.

    Args:
        file_size: size of the pickle in bytes.
    """

    def __init__(self, file_size: int) -> None:
        # Twice: bytes that are stored as text are copied once into bytes and once into the array.
        self._left = 2 * file_size + 1024

    def charge(self, amount: int) -> None:
        """Count bytes or items that are copied.

        Raises:
            Damaged: the total is more than the file can hold.
        """
        self._left -= amount
        if self._left < 0:
            raise Damaged("its contents are larger than the file")


@dataclass(frozen=True)
class Name:
    """The name of a global that a pickle refers to; it is never looked up."""

    module: str
    name: str


@dataclass
class NumericType:
    """The description of a numeric dtype: kind and size such as ``f4``, and the byte order."""

    code: str
    order: str = "="

    def dtype(self) -> np.dtype:
        """Return the numpy dtype."""
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


@dataclass
class ArrayShell:
    """An array under construction: numpy's pickles create the object first and fill it later."""

    value: np.ndarray | None = None


def make_array(budget: Budget, content: Any, numeric: Any, shape: Any, order: str) -> np.ndarray:
    """Return a numeric array in native byte order, after checking that its bytes fit its shape.

    Args:
        budget: charged with the size of the array.
        content: the raw bytes, or text in Latin-1.
        numeric: a :class:`NumericType`.
        shape: a tuple of at most 32 sizes.
        order: "F" for Fortran order, anything else for C.

    Raises:
        Damaged: an argument is malformed, or the bytes do not fit the shape.
    """
    if not isinstance(numeric, NumericType):
        raise Damaged("an array without a numeric type")
    raw = as_bytes(content)
    is_shape = isinstance(shape, tuple) and len(shape) <= 32
    if not is_shape or not all(type(size) is int and 0 <= size <= _MAX_DIMENSION for size in shape):
        raise Damaged("an array whose shape is not a tuple of sizes")
    dtype = numeric.dtype()
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise Damaged(f"{len(raw)} bytes for an array {shape} of {numeric.code}")
    budget.charge(len(raw))
    values = np.frombuffer(raw, dtype=np.uint8 if numeric.code == "b1" else dtype)
    values = values != 0 if numeric.code == "b1" else values.astype(dtype.newbyteorder("="))
    return values.reshape(shape, order="F" if order == "F" else "C")


def checked_key(key: Any) -> Any:
    """Return a dict key or set item, after checking that it is cheap to hash and not nested."""
    if not isinstance(key, _KEY_TYPES):
        raise Damaged(f"a {type(key).__name__.strip('_')} as a key")
    if isinstance(key, int) and not -(2**63) <= key < 2**64:
        raise Damaged("an integer of more than 64 bits as a key")
    return key


def as_bytes(content: Any) -> bytes | bytearray:
    """Return the bytes of an array; Python 2 stored them as a string."""
    if isinstance(content, str):
        return content.encode("latin-1")
    if not isinstance(content, (bytes, bytearray)):
        raise Damaged(f"a {type(content).__name__.strip('_')} as contents of an array")
    return content


def byte_order(state: Any, numeric: NumericType) -> str:
    """Return the byte order from a dtype's state; all else in the state must be numpy's defaults.

    The state is (version, order, subdtype, names, fields, item size, alignment, flags) and, in
    version 4, metadata.
    """
    if not isinstance(state, tuple) or len(state) not in (8, 9):
        raise Damaged("the state of a dtype has another form")
    order, subdtype, names, fields, size, alignment, flags = state[1:8]
    sizes = (-1, int(numeric.code[1:]))
    is_plain = subdtype is None and names is None and fields is None and flags == 0
    if not is_plain or size not in sizes or alignment not in sizes or any(state[8:]):
        raise Refused("a numpy.dtype with a state of its own")
    if not isinstance(order, str) or order not in ("<", ">", "|", "="):
        raise Damaged("a dtype without a byte order")
    return "=" if order == "|" else order
