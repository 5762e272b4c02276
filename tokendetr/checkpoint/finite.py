"""Find weights with which a model could only compute nonsense."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.checkpoint.key_names import grouped_keys
from tokendetr.errors import CheckpointError

__all__ = ["place_of_nan", "refuse_unusable_weights", "unusable_weights"]

_SHOWN = 5


def unusable_weights(weights: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return what is wrong with values that a model would load, one sentence part per kind.

    Args:
        weights: name -> tensor or array, with the model's names. Names that the model lacks, and
            tensors of another shape, are left alone.
        model: the model. Infinities that one of its buffers has itself, such as an attention mask,
            are allowed.

    Returns:
        Descriptions of NaN or infinite values, of negative running variances, and of integers where
        the model has real numbers (quantized weights without their scales), with the names of the
        first few tensors; empty if there are none.
    """
    own = model.state_dict()
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    infinite, negative, integers = [], [], []
    for name, value in weights.items():
        tensor = torch.as_tensor(value)
        is_real = name in own and own[name].is_floating_point()
        if not is_real or tensor.shape != own[name].shape:
            continue
        if not tensor.is_floating_point():
            integers.append(name)
            continue
        if tensor.element_size() == 1:
            tensor = tensor.float()  # PyTorch computes nothing with float8
        bad = ~torch.isfinite(tensor)
        if name in buffers and bool(bad.any()):
            bad &= tensor != own[name].to(tensor)
        if bool(bad.any()):
            infinite.append(name)
        elif name in buffers and name.endswith("running_var") and bool((tensor < 0).any()):
            negative.append(name)
    return [
        f"{len(names)} of its {len(weights)} tensors hold {what}: {_shortened(names)}"
        for names, what in (
            (infinite, "NaN or infinity"),
            (negative, "negative variances"),
            (integers, "integers, as quantized weights do"),
        )
        if names
    ]


def refuse_unusable_weights(path: str, weights: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse values of a file that would make all of a model's results NaN or chance.

    Args:
        path: the file, for the message.
        weights, model: see :func:`unusable_weights`.

    Raises:
        CheckpointError: there are such values; the message names their tensors.
    """
    if faults := unusable_weights(weights, model):
        raise CheckpointError(
            f"{path} was not loaded: {'; '.join(faults)}. Use a checkpoint from before its "
            "training diverged, or before it was quantized"
        )


def _shortened(names: list[str]) -> str:
    groups = grouped_keys(names)
    more = f", and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    return ", ".join(group[:120] for group in groups[:_SHOWN]) + more


def place_of_nan(content: Any, where: str) -> str:
    """Return the place of the first tensor with NaN in nested containers, "" if there is none.

    Args:
        content: of dicts, lists and tensors.
        where: name of the content.
    """
    if isinstance(content, Tensor):
        return where if bool(torch.isnan(content).any()) else ""
    if isinstance(content, Mapping):
        items: Any = content.items()
    elif isinstance(content, (list, tuple)):
        items = enumerate(content)
    else:
        return ""
    places = (place_of_nan(item, f"{where}.{key}") for key, item in items)
    return next(filter(None, places), "")
