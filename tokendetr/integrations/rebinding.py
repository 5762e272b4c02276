"""Copy functions with other values for some of their global names, leaving modules unchanged."""

from collections.abc import Callable, Mapping
from types import CellType, FunctionType
from typing import Any


def looked_up(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the globals that a function, or a function that it wraps, looks up, by name."""
    found: dict[str, Any] = {}
    current: Any = function
    while isinstance(current, FunctionType):
        names = set(current.__code__.co_names) & current.__globals__.keys()
        found |= {name: current.__globals__[name] for name in names}
        current = getattr(current, "__wrapped__", None)
    return found


def _copied(
    function: FunctionType,
    names: Mapping[str, object] | None = None,
    closure: tuple[CellType, ...] | None = None,
) -> FunctionType:
    namespace = function.__globals__
    if names is not None:
        # With __name__, torch.compile would look the names up in the module of that name.
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
    """Return a copy of a function that has other values for some global names.

    The original and its module are unchanged. Decorators that record what they wrap
    (``functools.wraps``) are copied as well.

    Args:
        function: the function; its code is shared with the copy.
        names: new values by name. All other names keep their current values.

    Raises:
        ValueError: neither the function nor a function that it wraps looks up one of the names, or
            a decorator does not hold the wrapped function in its closure.
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
