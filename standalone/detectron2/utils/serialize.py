"""Pickling of objects that the standard pickle refuses."""

from typing import Any

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Pickle a callable (a lambda, a local function) through cloudpickle."""

    def __init__(self, obj: Any) -> None:
        # wrapping twice would pickle twice
        self._obj: Any = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self) -> Any:
        return _restore, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped object."""
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name != "_obj":
            return getattr(self._obj, name)
        raise AttributeError(name)


def _restore(dumped: bytes) -> PicklableWrapper:
    return PicklableWrapper(cloudpickle.loads(dumped))
