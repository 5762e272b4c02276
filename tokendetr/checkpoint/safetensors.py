"""Save and load weights as small safetensors files."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.errors import CheckpointError

__all__ = ["alias_groups", "load_safetensors", "save_safetensors"]

_ALIASES = "aliases"


def alias_groups(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the groups of two or more names that share one tensor.

    Detectors register shared heads under several names (``class_embed`` and
    ``transformer.decoder.class_embed``), as upstream's state dicts do. Two names are aliases only
    if address, shape, strides and dtype agree; a view of a part of a tensor is not one. Empty
    tensors all have the address 0 and are left out.
    """
    groups: dict[Any, list[str]] = {}
    for name, value in state.items():
        if value.numel():
            key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device)
            groups.setdefault(key, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def save_safetensors(
    model: nn.Module | Mapping[str, Tensor],
    path: str,
    *,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write weights to a safetensors file in low precision, storing every shared tensor once.

    Tensors of two or more dimensions are stored as ``dtype``. Vectors (biases, norms and their
    statistics) keep their type: they take little space, and their range may exceed that of half
    precision. So does any tensor that ``dtype`` cannot represent.

    Args:
        model: a model or its state dict.
        path: the file, ending in ``.safetensors``; written atomically.
        dtype: float16, bfloat16 or float32.
        metadata: text to store in the file's header.

    Returns:
        Size of the file in bytes.

    Raises:
        ValueError: the path has another extension, or a weight is not finite.
    """
    from safetensors.torch import save

    from tokendetr.io.atomic import write_atomically

    if not path.endswith(".safetensors"):
        raise ValueError(f"{path}: the name of a safetensors file must end in .safetensors")
    state = model.state_dict() if isinstance(model, nn.Module) else model
    # safetensors refuses tensors that share memory. One name of each is stored; the header records
    # the others, and load_safetensors restores them, so that a strict load finds every key.
    aliases = {name: group[0] for group in alias_groups(state) for name in group[1:]}
    tensors = {
        name: _narrowed(name, value, dtype) for name, value in state.items() if name not in aliases
    }
    header = {**(metadata or {}), _ALIASES: json.dumps(aliases), "format": "pt"}
    content = save(tensors, metadata=header)
    write_atomically(path, content)
    return len(content)


def _narrowed(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value.clone()
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"weight {name} is not finite; it was not saved")
    if value.dim() < 2:
        return value.clone()
    low = value.to(dtype)
    return low if bool(torch.isfinite(low).all()) else value.clone()


def load_safetensors(path: str) -> dict[str, Tensor]:
    """Read a safetensors file into a state dict, including the names that share a tensor.

    Half precision is converted to float32.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: _full(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        aliases = json.loads(metadata.get(_ALIASES, "{}"))
        state.update({name: state[stored] for name, stored in aliases.items()})
    except Exception as error:  # the header may be anything: SafetensorError, TypeError, ...
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return state


def _full(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
