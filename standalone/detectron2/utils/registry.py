"""Name registries, and objects from and to their dotted names."""

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def _convert_target_to_string(target: Any) -> str:
    """Return the shortest dotted name under which a function or class can be imported again."""
    module, qualname = target.__module__, target.__qualname__
    parts = module.split(".")
    for length in range(1, len(parts)):
        candidate = f"{'.'.join(parts[:length])}.{qualname}"
        try:
            if locate(candidate) is target:
                return candidate
        except ImportError:
            continue
    return f"{module}.{qualname}"


def locate(name: str) -> Any:
    """Return the object with a dotted name such as ``torch.nn.Linear``.

    Raises:
        ImportError: no such object can be found; the message carries the reason if there is one.
    """
    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise ImportError(f"{name} cannot be imported: {error}") from error
    if found is not None:
        return found
    from hydra.utils import _locate

    try:
        return _locate(name)
    except ImportError as error:
        raise ImportError(f"there is no {name}") from error
