"""Read checkpoint files of every kind without running code from them.

Whatever is wrong with a file ends in one error class that names it: the readers below are handed
bytes that anyone may have written, so any exception of theirs means that the file is to blame.
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
from tokendetr.checkpoint.safetensors import load_safetensors
from tokendetr.errors import CheckpointError, UnsafeCheckpointError
from tokendetr.io.plain_pickle import PlainPickleError, load_arrays

__all__ = ["read_checkpoint"]

logger = logging.getLogger(__name__)

_PLAIN_TYPES: list[Any] = [argparse.Namespace]  # the published codes' files hold their command line
# Where codes keep a model's weights inside their checkpoints, in the order of preference.
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
    """Read a checkpoint file as a dict with ``model``.

    Args:
        path: a local ``.safetensors`` file, a ``.pkl`` of numpy arrays (detectron2's model zoo),
            or a file of ``torch.save``: with ``model``, ``state_dict``, ``model_state_dict``,
            ``ema_state`` and the like, also one in the other (``ema.module``), ``model_state``
            (``.pyth``), or a bare state dict. The prefixes ``module.`` and ``_orig_mod.`` of
            wrapped models are removed from the keys.
        query: ``matching_heuristics=True`` to match keys by their endings.

    Returns:
        ``model`` (name -> tensor or array) and whatever else is in the file.

    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpointError: the file holds anything but tensors, arrays and plain values.
        CheckpointError: it is damaged or is no checkpoint.
        ValueError: the query is unknown.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} does not exist{how_it_is_made(path)}")
    if path.endswith(".safetensors"):
        data: dict[str, Any] = {"model": load_safetensors(path)}
    elif path.endswith(".pkl"):
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
    """Return a hint at weights of this project that do not come with it, "" for other files."""
    folder = os.path.dirname(os.path.abspath(path))
    ours = f"{folder}{os.sep}".startswith(f"{projects_folder()}{os.sep}")
    if not ours or not os.path.isfile(readme := os.path.join(folder, "README.md")):
        return ""
    return f": it is made as {readme} says"


def _read_torch(path: str) -> dict[str, Any]:
    try:
        _refuse_zip_bomb(path)
        with torch.serialization.safe_globals(_PLAIN_TYPES):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            raise UnsafeCheckpointError(
                f"{path} was refused: it holds more than tensors and plain values, and reading "
                f"that would run code from the file ({reason}). Nothing was executed. If you made "
                "it yourself, save its state dict anew with torch.save."
            ) from error
        raise CheckpointError(f"{path} is damaged or is no checkpoint: {reason}") from error
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


def _moving_average(path: str, state: Any) -> dict[str, Any] | None:
    """The averaged weights of a checkpoint; None, with a warning, where they are something else."""
    if state is None:
        return None
    try:
        return _checked_weights(path, _unwrapped(path, state))
    except CheckpointError as error:
        logger.warning("The moving average in ema_state cannot be used and is left out: %s", error)
        return None


def _unwrapped(path: str, content: Any) -> Any:
    """The weights inside a checkpoint; the content itself where it wraps nothing."""
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(content, Mapping):
            return content
        inner = next((content[n] for n in _WRAPPERS if isinstance(content.get(n), Mapping)), None)
        if inner is None:
            return content
        content = inner
    raise CheckpointError(
        f"{path} is no checkpoint: its weights lie below more than {_MAX_WRAPPERS} wrappers"
    )


def _refuse_zip_bomb(path: str) -> None:
    """Refuse an archive whose contents are larger than itself; torch.save compresses nothing."""
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
    """A state dict with the names of an unwrapped model; everything in it is a tensor or array."""
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: its weights are a {type(weights).__name__}, not a dict")
    size = os.path.getsize(path)
    for name, value in weights.items():
        if fault := _fault(name, value, size):
            raise CheckpointError(
                f"{path} is no checkpoint: {str(name)[:100]!r} in its weights is {fault}"
            )
    return _without_wrappers(path, weights)


def _fault(name: Any, value: Any, file_size: int) -> str:
    """What is wrong with an entry of a state dict, or ""."""
    if not isinstance(name, str) or not isinstance(value, (Tensor, np.ndarray)):
        return f"a {type(value).__name__}, not a tensor"
    if isinstance(value, np.ndarray):
        return "complex" if np.iscomplexobj(value) else ""
    is_dense = value.layout == torch.strided and not value.is_quantized and not value.is_nested
    if not is_dense or value.device.type != "cpu":
        return "no dense tensor with values (sparse, quantized, nested, or without storage)"
    if value.is_complex():
        return "complex"
    # A tensor may repeat its storage without end; copying it would take all memory.
    if value.numel() * value.element_size() > file_size:
        return f"a tensor of shape {tuple(value.shape)}, larger than the file"
    return ""


def _without_wrappers(path: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Remove what DistributedDataParallel and torch.compile put into the names of weights."""
    names = [str(name).replace("_orig_mod.", "") for name in weights]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    if len(set(names)) != len(names):
        raise CheckpointError(f"{path} holds weights of a compiled model and its plain twin")
    return dict(zip(names, weights.values(), strict=True))
