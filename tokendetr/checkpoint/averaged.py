"""Choose between a training checkpoint's weights and their moving average."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from tokendetr.errors import CheckpointError, CheckpointMismatchError

__all__ = ["Choice", "chosen_weights"]

Choice = Literal["auto", "model", "ema", "ema_if_kept"]


def chosen_weights(checkpoint: Mapping[str, Any], choice: Choice = "auto") -> tuple[dict, str]:
    """Return the weights to use from a checkpoint, and which these are: "model" or "ema".

    Args:
        checkpoint: with ``model``, and ``ema_state`` if the training kept a moving average.
        choice: "model" or "ema"; "ema_if_kept" takes the average if the checkpoint has one; "auto"
            takes it if the checkpoint was selected by it (its ``best_metric_name`` is one of the
            moving average, such as ``bbox_ema/AP``).

    Raises:
        CheckpointError: "ema" is requested, and the checkpoint has no average.
        CheckpointMismatchError: the average belongs to another model than the checkpoint.
    """
    average = checkpoint.get("ema_state")
    if choice == "ema" and not average:
        raise CheckpointError("the checkpoint has no ema_state: it was trained without model_ema")
    measured = "_ema/" in str(checkpoint.get("best_metric_name", ""))
    if average and (choice in ("ema", "ema_if_kept") or (choice == "auto" and measured)):
        return _averaged(checkpoint["model"], average), "ema"
    return dict(checkpoint["model"]), "model"


def _averaged(weights: Mapping[str, Any], average: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights with every averaged parameter replaced, under all of its names.

    Either dict may have the prefix ``module.``, if its model was wrapped when it was saved.

    Raises:
        CheckpointMismatchError: the average belongs to another model.
    """
    average = {_plain(name): value for name, value in average.items()}
    # A moving average has every parameter under one name (``named_parameters``), but a state dict
    # has shared heads under two. Replacing one name alone would leave the other, which loading may
    # apply last, with the weights before averaging. So names are also matched by storage.
    by_tensor = {
        value.data_ptr(): average[_plain(name)]
        for name, value in weights.items()
        if _plain(name) in average and isinstance(value, Tensor) and value.numel()
    }
    if not average.keys() & {_plain(name) for name in weights}:
        raise CheckpointMismatchError("no key of the checkpoint's ema_state is one of its model's")
    return {
        name: average.get(_plain(name), by_tensor.get(value.data_ptr(), value))
        if isinstance(value, Tensor)
        else value
        for name, value in weights.items()
    }


def _plain(name: str) -> str:
    return name.removeprefix("module.")
