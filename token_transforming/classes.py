"""The classes that modules have while their model is transformed.

A module changes its class instead of being wrapped: it keeps its place, parameters, hooks and state
dict, and copies of it know what to do.
"""

_TRANSFORMED: dict[tuple[type, type], type] = {}


def transformed_class(original: type, mixin: type) -> type:
    """Return the class that is ``original`` with a mixin in front; the same one every time."""
    key = original, mixin
    if key not in _TRANSFORMED:
        _TRANSFORMED[key] = type(f"Transformed{original.__name__}", (mixin, original), {})
    return _TRANSFORMED[key]


def original_class(transformed: type) -> type:
    """Return the class that a transformed class was made from."""
    return transformed.__bases__[1]
