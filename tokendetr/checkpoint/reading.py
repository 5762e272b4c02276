"""Read checkpoint files of all formats without running code that they may hold.

Every fault of a file is raised as a :class:`~tokendetr.errors.CheckpointError` that names it. The
readers get untrusted bytes, so any exception that they raise is treated as a fault of the file.
"""

import argparse
import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch
from torch import Tensor

from tokendetr._projects import projects_folder
from tokendetr.checkpoint.formats import recognized_format
from tokendetr.checkpoint.safetensors import load_safetensors
from tokendetr.errors import CheckpointError, UnsafeCheckpointError
from tokendetr.io.plain_pickle import PlainPickleError, load_arrays

__all__ = ["read_checkpoint"]

logger = logging.getLogger(__name__)

_PLAIN_TYPES: list[Any] = [argparse.Namespace]  # published checkpoints hold their command line
# Keys under which training codes store the weights in their checkpoints, in order of preference.
_WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "net",
    "weights",
    "params",
    "ema_state",
    "model_ema",
    "ema",
)
_MAX_WRAPPERS = 8


def read_checkpoint(path: str, query: str = "") -> dict[str, Any]:
    """Read a checkpoint file into a dict with the key ``model``.

    Args:
        path: a local safetensors file, a ``.pkl`` of numpy arrays (detectron2's model zoo), or a
            file of ``torch.save``. The last may be a bare state dict, or hold one under
            ``model``, ``state_dict``, ``model_state_dict``, ``ema_state`` and the like, also nested
            (``ema.module``), or under ``model_state`` (``.pyth``). The prefixes ``module.`` and
            ``_orig_mod.`` of wrapped models are removed from the keys.
        query: ``matching_heuristics=True`` to match keys by their suffixes.

    Returns:
        ``model`` (name -> tensor or array) and whatever else is in the file.

    Raises:
        FileNotFoundError: no such file.
        IsADirectoryError: it is a folder.
        UnsafeCheckpointError: the file holds more than tensors, arrays and plain values.
        CheckpointError: the file is damaged or is not a checkpoint.
        ValueError: the query is unknown.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"checkpoint {path} is a folder: name a file")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} does not exist{how_it_is_made(path)}")
    form = recognized_format(path)
    if form == "safetensors":
        data: dict[str, Any] = {"model": load_safetensors(path)}
    elif form == "zoo pickle":
        data = _read_zoo_pickle(path)
    else:
        data = _read_torch(path)
    data["model"] = _checked_weights(path, data["model"])
    options = parse_qs(query)
    if options.pop("matching_heuristics", ["False"]) == ["True"]:
        data["matching_heuristics"] = True
    if options:
        raise ValueError(f"{path}?{query}: only matching_heuristics=True is known")
    return data


def how_it_is_made(path: str) -> str:
    """Return how to make weights that the project does not ship, for messages; else ""."""
    folder = os.path.dirname(os.path.abspath(path))
    ours = f"{folder}{os.sep}".startswith(f"{projects_folder()}{os.sep}")
    if not ours or not os.path.isfile(readme := os.path.join(folder, "README.md")):
        return ""
    return f": it is made as {readme} says"


def _read_torch(path: str) -> dict[str, Any]:
    try:
        _refuse_zip_bomb(path)
        # Open, for torch.load reads a path by its extension.
        with open(path, "rb") as file, torch.serialization.safe_globals(_PLAIN_TYPES):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        reason = _reason(error)
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            raise UnsafeCheckpointError(
                f"{path} was refused: it holds more than tensors and plain values, and reading "
                f"that would run code from the file ({reason}). Nothing was executed. If you made "
                "it yourself, save its state dict again with torch.save."
            ) from error
        raise CheckpointError(f"{path} is damaged or is not a checkpoint: {reason}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a checkpoint")
    if "ema_state" in loaded and (average := _moving_average(path, loaded.pop("ema_state"))):
        loaded["ema_state"] = average
    weights = _unwrapped(path, loaded)
    if weights is not loaded:
        return {**loaded, "model": weights}
    if "model_state" in loaded:
        weights = _checked_weights(path, loaded["model_state"])
        kept = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
        return {"model": kept, "__author__": "pycls", "matching_heuristics": True}
    return {"model": loaded}


def _reason(error: Exception) -> str:
    """Return what is wrong with a file, without torch's advice to read it in an unsafe way."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if "weights_only" not in line]
    return next(iter(kept), repr(error) if not lines else type(error).__name__)


def _moving_average(path: str, state: Any) -> dict[str, Any] | None:
    """Return the averaged weights of a checkpoint; None, with a warning, if they are unusable."""
    if state is None:
        return None
    try:
        return _checked_weights(path, _unwrapped(path, state))
    except CheckpointError as error:
        logger.warning("The moving average in ema_state cannot be used and is left out: %s", error)
        return None


def _unwrapped(path: str, content: Any) -> Any:
    """Return the innermost weights of a checkpoint; the content itself if nothing wraps them."""
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(content, Mapping):
            return content
        inner = next((content[n] for n in _WRAPPERS if isinstance(content.get(n), Mapping)), None)
        if inner is None:
            return content
        content = inner
    raise CheckpointError(
        f"{path} is not a checkpoint: its weights are nested in more than {_MAX_WRAPPERS} dicts"
    )


def _refuse_zip_bomb(path: str) -> None:
    """Refuse an archive that unpacks to more than its size: torch.save does not compress."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with zipfile.ZipFile(path) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > os.path.getsize(path):
        raise CheckpointError(
            f"{path} was refused: it unpacks to {total} bytes, more than the file has"
        )


def _read_zoo_pickle(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = load_arrays(file, path)
    except PlainPickleError as error:
        kind = UnsafeCheckpointError if error.is_unsafe else CheckpointError
        raise kind(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not a checkpoint")
    if "model" in data and "__author__" in data:
        return data
    # Caffe2: detection models keep their weights under "blobs", ImageNet models at the top.
    weights = _checked_weights(path, data.get("blobs", data))
    kept = {name: value for name, value in weights.items() if not name.endswith("_momentum")}
    return {"model": kept, "__author__": "Caffe2", "matching_heuristics": True}


def _checked_weights(path: str, weights: Any) -> dict[str, Any]:
    """Return a state dict of tensors and arrays, under the names of the unwrapped model."""
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: its weights are a {type(weights).__name__}, not a dict")
    size = os.path.getsize(path)
    for name, value in weights.items():
        if fault := _fault(name, value, size):
            raise CheckpointError(
                f"{path} is not a checkpoint: {str(name)[:100]!r} in its weights is {fault}"
            )
    return _without_wrappers(path, weights)


def _fault(name: Any, value: Any, file_size: int) -> str:
    """Return what is wrong with an entry of a state dict, "" if nothing is."""
    if not isinstance(name, str) or not isinstance(value, (Tensor, np.ndarray)):
        return f"a {type(value).__name__}, not a tensor"
    if isinstance(value, np.ndarray):
        return "complex" if np.iscomplexobj(value) else ""
    is_dense = value.layout == torch.strided and not value.is_quantized and not value.is_nested
    if not is_dense or value.device.type != "cpu":
        return "no dense tensor with values (sparse, quantized, nested, or without storage)"
    if value.is_complex():
        return "complex"
    # An expanded tensor may have any shape over a small storage; copying it would fill the memory.
    if value.numel() * value.element_size() > file_size:
        return f"a tensor of shape {tuple(value.shape)}, larger than the file"
    return ""


def _without_wrappers(path: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the prefixes that DistributedDataParallel and torch.compile add to names."""
    names = [str(name).replace("_orig_mod.", "") for name in weights]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    if len(set(names)) != len(names):
        raise CheckpointError(
            f"{path} holds weights both with and without the prefix of a compiled model"
        )
    return dict(zip(names, weights.values(), strict=True))
