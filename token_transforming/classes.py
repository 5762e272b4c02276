"""Classes of modules while their model is transformed.

A transformed module changes its class instead of being wrapped, so it keeps its place, parameters,
hooks and state dict, and copies of it are transformed too.
"""

from typing import Any


class Transformed:
    """Base of the mixins; makes transformed modules copyable and picklable.

    Their class is made at run time, so a copy is described by its two importable bases.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Describe how to build a copy."""
        found: Any = super().__reduce_ex__(max(2, int(protocol)))
        _, (kind, *arguments), *rest = found
        return (_empty, (original_class(kind), kind.__bases__[0], *arguments), *rest)


_TRANSFORMED: dict[tuple[type, type], type] = {}


def transformed_class(original: type, mixin: type) -> type:
    """Return the (cached) class with bases ``mixin`` and ``original``."""
    key = original, mixin
    if key not in _TRANSFORMED:
        _TRANSFORMED[key] = type(f"Transformed{original.__name__}", (mixin, original), {})
    return _TRANSFORMED[key]


def original_class(kind: type) -> type:
    """Return the class that a transformed class was made from; any other class itself."""
    return kind.__bases__[1] if kind in _TRANSFORMED.values() else kind


def _empty(original: type, mixin: type, *arguments: Any) -> Any:
    """Return an object of a transformed class before its state is set."""
    kind = transformed_class(original, mixin)
    return kind.__new__(kind, *arguments)
