"""Loading the compiled extension ``tokendetr._C``, once, and saying why when it cannot be loaded."""

import functools
import importlib


@functools.cache
def load_error() -> str | None:
    """Load the extension and attach its Python rules; return None, or the reason why it cannot be used."""
    try:
        importlib.import_module("tokendetr._C")
        importlib.import_module("tokendetr.ops.registration")
    except ImportError as error:
        return str(error)
    return None


@functools.cache
def device_types() -> tuple[str, ...]:
    """Return the device types that the loaded extension has kernels for."""
    return tuple(importlib.import_module("tokendetr._C").device_types)
