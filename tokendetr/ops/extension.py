"""Loading the compiled extension ``tokendetr._C`` once, or saying why that fails."""

import functools
import importlib


@functools.cache
def load_error() -> str | None:
    """Load the extension and its Python rules; return None, or why it cannot be used."""
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
