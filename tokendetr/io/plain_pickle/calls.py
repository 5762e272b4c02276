"""The callables by which pickles describe plain data; all other globals are refused."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .values import (
    NUMERIC_TYPES,
    ArrayShell,
    Budget,
    Damaged,
    Name,
    NumericType,
    Refused,
    as_bytes,
    checked_key,
    make_array,
)

__all__ = ["CALLS", "known_name"]

_NUMPY_CORES = ("numpy.core", "numpy._core")


def _call_dtype(budget: Budget, code: Any, *_flags: Any) -> NumericType:
    if not isinstance(code, str) or code not in NUMERIC_TYPES:
        named = repr(code[:40]) if isinstance(code, str) else "..."
        raise Refused(f"numpy.dtype({named}), which is not a plain number")
    return NumericType(code)


def _call_reconstruct(budget: Budget, kind: Any, *_placeholder: Any) -> ArrayShell:
    if kind != Name("numpy", "ndarray"):
        raise Refused("an array of another class than numpy.ndarray")
    return ArrayShell()


def _call_scalar(budget: Budget, numeric: Any, content: Any = b"") -> Any:
    return make_array(budget, content, numeric, (), "C")[()]


def _call_frombuffer(
    budget: Budget, content: Any, numeric: Any, shape: Any, order: Any, axis_order: Any = None
) -> np.ndarray:
    array = make_array(budget, content, numeric, shape, "F" if order == "F" else "C")
    if order == "K" and axis_order is not None:
        is_axes = isinstance(axis_order, tuple) and all(type(axis) is int for axis in axis_order)
        if not is_axes or sorted(axis_order) != list(range(array.ndim)):
            raise Damaged("an array whose axes are in no order")
        return array.transpose(axis_order)
    return array


def _call_encode(budget: Budget, text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("_codecs.encode with another encoding than latin1")
    budget.charge(len(text))
    return text.encode("latin-1")


def _call_bytes(budget: Budget, content: Any = b"") -> bytes:
    raw = as_bytes(content)
    budget.charge(len(raw))
    return bytes(raw)


def _call_bytearray(budget: Budget, content: Any = b"", encoding: Any = "latin-1") -> bytearray:
    raw = as_bytes(content)
    budget.charge(len(raw))
    return bytearray(raw)


def _call_ordered_dict(budget: Budget, pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        raise Damaged("an OrderedDict of no pairs")
    budget.charge(2 * len(pairs))
    return {checked_key(key): value for key, value in pairs}


def _call_set(budget: Budget, items: Any = ()) -> set[Any]:
    if not isinstance(items, (list, tuple)):
        raise Damaged("a set of no list")
    budget.charge(len(items))
    return set(map(checked_key, items))


def _not_callable(budget: Budget, *_arguments: Any) -> Any:
    raise Refused("a call of numpy.ndarray")


CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _call_encode,
    ("collections", "OrderedDict"): _call_ordered_dict,
    ("numpy", "dtype"): _call_dtype,
    ("numpy", "ndarray"): _not_callable,
    **{(f"{core}.multiarray", "_reconstruct"): _call_reconstruct for core in _NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): _call_scalar for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _call_frombuffer for core in _NUMPY_CORES},
    **{(module, "bytes"): _call_bytes for module in ("builtins", "__builtin__")},
    **{(module, "bytearray"): _call_bytearray for module in ("builtins", "__builtin__")},
    **{(module, "set"): _call_set for module in ("builtins", "__builtin__")},
}


def known_name(module: str, name: str) -> Name:
    """Return the description of a global.

    Raises:
        Refused: the global is not one of :data:`CALLS`.
    """
    if (module, name) not in CALLS:
        raise Refused(f"{module}.{name}"[:200])
    return Name(module, name)
