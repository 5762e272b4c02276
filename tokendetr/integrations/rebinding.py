"""Functions whose global names mean something else, without touching their module."""

from collections.abc import Callable, Mapping
from types import CellType, FunctionType
from typing import Any


def global_names(function: Callable[..., Any]) -> frozenset[str]:
    """Return the global names that a function, or one that its decorators wrap, looks up."""
    names: set[str] = set()
    current: Any = function
    while isinstance(current, FunctionType):
        names |= set(current.__code__.co_names) & current.__globals__.keys()
        current = getattr(current, "__wrapped__", None)
    return frozenset(names)


def _copied(
    function: FunctionType,
    names: Mapping[str, object] | None = None,
    closure: tuple[CellType, ...] | None = None,
) -> FunctionType:
    namespace = function.__globals__
    if names is not None:
        # Without a module's name torch.compile reads these names here and not from the module.
        namespace = {key: value for key, value in namespace.items() if key != "__name__"}
        namespace |= names
    copied = FunctionType(
        function.__code__,
        namespace,
        function.__name__,
        function.__defaults__,
        function.__closure__ if closure is None else closure,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    copied.__dict__.update(function.__dict__)
    copied.__module__, copied.__qualname__ = function.__module__, function.__qualname__
    copied.__doc__ = function.__doc__
    return copied


def rebound(function: FunctionType, names: Mapping[str, object]) -> FunctionType:
    """Return a copy of a function that sees other values under some global names.

    The original and its module stay as they are. Decorators that tell what they wrap
    (``functools.wraps``) are copied with it.

    Args:
        function: the function; its code is shared with the copy.
        names: new values. Other names keep the values that they have now.

    Raises:
        ValueError: where neither the function nor what it wraps looks up one of the names, or a
            decorator does not hold what it wraps in a variable of its own.
    """
    if names.keys() & set(function.__code__.co_names) & function.__globals__.keys():
        return _copied(function, names=names)
    wrapped = getattr(function, "__wrapped__", None)
    cells = function.__closure__ or ()
    held = [cell.cell_contents is wrapped for cell in cells]
    if not isinstance(wrapped, FunctionType) or not any(held):
        raise ValueError(f"{function.__qualname__} looks up none of {', '.join(sorted(names))}")
    inner = rebound(wrapped, names)
    pairs = zip(cells, held, strict=True)
    copied = _copied(function, closure=tuple(CellType(inner) if is_it else c for c, is_it in pairs))
    vars(copied)["__wrapped__"] = inner
    return copied
