"""The compiled kernels, loaded once when ``tokendetr.ops`` is imported, or why they cannot be.

Loaded here and not on the first call, so that ``torch.compile`` never traces the import.
"""

import importlib


def _load() -> tuple[str | None, tuple[str, ...]]:
    try:
        module = importlib.import_module("tokendetr._C")
    except ImportError as error:
        return str(error), ()
    return None, tuple(module.device_types)


_LOAD_ERROR, _DEVICE_TYPES = _load()


def load_error() -> str | None:
    """Return None, or the reason why the compiled kernels cannot be used."""
    return _LOAD_ERROR


def device_types() -> tuple[str, ...]:
    """Return the device types that there are kernels for."""
    return _DEVICE_TYPES
