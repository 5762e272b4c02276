"""Load an optimizer's saved state, but keep the hyperparameters of the current config."""

import contextlib
import copy
import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.errors import CheckpointMismatchError

__all__ = ["load_optimizer_state", "try_update"]

logger = logging.getLogger(__name__)

_LIKE_PARAMETERS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""Names in the state of PyTorch's optimizers for tensors of a parameter's shape."""


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load an optimizer's saved state, keeping the hyperparameters that it was built with.

    Learning rate, weight decay and the like stay those of the current config; differences from the
    saved run are logged.

    Args:
        optimizer: the optimizer, built from the config.
        saved: a state dict of the optimizer.

    Raises:
        CheckpointMismatchError: the state is of another kind of optimizer.
        ValueError: the state is of other parameters.
    """
    _check_shapes(optimizer, saved)
    built = [_hyperparameters(group) for group in optimizer.param_groups]
    if missing := _lacking(optimizer, saved):
        raise CheckpointMismatchError(
            f"the state of the optimizer lacks {', '.join(missing)}, which "
            f"{type(optimizer).__name__} needs with the config's settings"
        )
    optimizer.load_state_dict(dict(saved))
    changed: dict[str, tuple[Any, Any]] = {}
    for group, settings in zip(optimizer.param_groups, built, strict=True):
        before = _hyperparameters(group)
        for name, value in settings.items():
            if before.get(name, value) != value:
                changed.setdefault(name, (before[name], value))
        group.update(settings)
        group["initial_lr"] = settings["lr"]  # the base that schedules multiply
    for name, (old, new) in changed.items():
        logger.warning("The config changes the optimizer's %s from %s to %s", name, old, new)


def try_update(optimizer: torch.optim.Optimizer) -> None:
    """Make one update on a copy, so that contradictory options raise before the first step.

    Raises:
        RuntimeError, TypeError, ValueError: the optimizer refuses its options.
    """
    group = optimizer.param_groups[0]
    with contextlib.suppress(AttributeError, LookupError):  # the optimizer cannot be copied
        _kept_names(optimizer, group, group["params"][0])


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter group's hyperparameters.

    A schedule changes ``lr`` but not ``initial_lr``.
    """
    values = {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
    return {**values, "lr": group.get("initial_lr", group.get("lr"))}


def _check_shapes(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Check that averages of gradients have their parameters' shapes, which PyTorch does not.

    Raises:
        CheckpointMismatchError: one has another shape: the parameters are others, or in another
            order.
    """
    ids = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in zip(ids, parameters, strict=False):
        for name in _LIKE_PARAMETERS:
            value = (saved["state"].get(number) or {}).get(name)
            if isinstance(value, Tensor) and value.shape != parameter.shape:
                raise CheckpointMismatchError(
                    f"{name} of parameter {number} in the state of the optimizer has the shape "
                    f"{list(value.shape)}, the parameter {list(parameter.shape)}"
                )


def _lacking(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> list[str]:
    """Return the names that the optimizer keeps per parameter and the saved state lacks.

    Parameters that never had a gradient have no state; the first one with a state is compared.
    """
    ids = [number for group in saved["param_groups"] for number in group["params"]]
    places = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    for number, (group, parameter) in zip(ids, places, strict=False):
        if state := saved["state"].get(number):
            with contextlib.suppress(Exception):  # the optimizer cannot be copied
                return sorted(_kept_names(optimizer, group, parameter) - set(state))
            return []
    return []


def _kept_names(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: Tensor
) -> set[str]:
    """Return the names of an optimizer's state for a parameter, found by an update on a copy."""
    trial = copy.copy(optimizer)
    stand_in = nn.Parameter(torch.zeros_like(parameter))
    stand_in.grad = torch.zeros_like(parameter)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**group, "params": [stand_in]}]
    trial.step()
    return {name for name, value in trial.state[stand_in].items() if value is not None}
