"""Which weights of a training's checkpoint were measured: the model's, or their moving average."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from tokendetr.errors import CheckpointError, CheckpointMismatchError

__all__ = ["Choice", "chosen_weights"]

Choice = Literal["auto", "model", "ema", "ema_if_kept"]


def chosen_weights(checkpoint: Mapping[str, Any], choice: Choice = "auto") -> tuple[dict, str]:
    """Return the weights to use of a checkpoint, and which they are: "model" or "ema".

    Args:
        checkpoint: with ``model``, and ``ema_state`` where the training kept a moving average.
        choice: "auto" takes the average where it is what the checkpoint was chosen by
            (``best_metric_name`` of the moving average, such as ``bbox_ema/AP``); "ema_if_kept"
            wherever the checkpoint has one.

    Raises:
        CheckpointError: the average is asked for, and the checkpoint has none.
        CheckpointMismatchError: the average is of another model than the checkpoint.
    """
    average = checkpoint.get("ema_state")
    if choice == "ema" and not average:
        raise CheckpointError("the checkpoint has no ema_state: it was trained without model_ema")
    measured = "_ema/" in str(checkpoint.get("best_metric_name", ""))
    if average and (choice in ("ema", "ema_if_kept") or (choice == "auto" and measured)):
        return _averaged(checkpoint["model"], average), "ema"
    return dict(checkpoint["model"]), "model"


def _averaged(weights: Mapping[str, Any], average: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights with the averaged ones in their places, also under a tensor's other names.

    A moving average names every parameter once; heads that a decoder shares have two names. Either
    may be below ``module.``, where one of both was wrapped when it was saved.

    Raises:
        CheckpointMismatchError: the average is of another model.
    """
    average = {_plain(name): value for name, value in average.items()}
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
