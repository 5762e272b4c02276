"""Parameters of a module that another one replaces in a built model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["adopt_parameters"]


def adopt_parameters(module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> Any:
    """Make the parameters of a replaced module those of its successor.

    They stay the same objects, so that an optimizer goes on training them, parameters shared with
    other modules stay shared, and frozen ones stay frozen.

    Args:
        module: the successor.
        state: ``state_dict(keep_vars=True)`` of the replaced module, under the successor's names.
        strict: raise if names are missing or unexpected.

    Returns:
        What :meth:`torch.nn.Module.load_state_dict` returns: missing and unexpected keys.

    Raises:
        RuntimeError: names or shapes differ.
    """
    trained = [(value, value.requires_grad) for value in state.values()]
    try:
        return module.load_state_dict(state, strict=strict, assign=True)
    finally:
        for value, requires_grad in trained:  # which assigning replaces by the successor's
            value.requires_grad_(requires_grad)
