"""The compiled extension ``tokendetr._C``, loaded once on import, or why it cannot be.

Loaded here and not on the first call, so that ``torch.compile`` never traces the import.
"""

import importlib

_REGISTRATIONS = {
    "ms_deform_attn": "tokendetr.ops.registration",
    "packed_attention": "tokendetr.ops.registration_packed",
}


def _load() -> tuple[dict[str, str], tuple[str, ...]]:
    try:
        module = importlib.import_module("tokendetr._C")
    except ImportError as error:
        return dict.fromkeys(_REGISTRATIONS, str(error)), ()
    errors = {}
    for operator, registration in _REGISTRATIONS.items():
        try:
            importlib.import_module(registration)
        except ImportError as error:
            errors[operator] = str(error)
    return errors, tuple(module.device_types)


_LOAD_ERRORS, _DEVICE_TYPES = _load()


def load_error(operator: str = "ms_deform_attn") -> str | None:
    """Return None, or the reason why the extension cannot be used for an operator."""
    return _LOAD_ERRORS.get(operator)


def device_types() -> tuple[str, ...]:
    """Return the device types that the extension has kernels for."""
    return _DEVICE_TYPES
