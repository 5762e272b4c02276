"""The checkpointer of detectors."""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import ParseResult, parse_qs, urlparse

import numpy as np
import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .c2_model_loading import align_and_update_state_dicts
from .safe_pickle import load_arrays

__all__ = ["DetectionCheckpointer"]


class DetectionCheckpointer(Checkpointer):
    """fvcore's ``Checkpointer``, extended to model-zoo files and to files only rank 0 can see.

    It loads ``.pth`` files (a dict with ``model``, or a bare state dict) and ``.pkl`` files of
    numpy arrays (detectron2's and Caffe2's zoo), from local paths, URLs and ``detectron2://``.
    Neither kind can run code. ``path?matching_heuristics=True`` matches names by their longest
    common ending.

    Args:
        model: the model.
        save_dir: folder of the checkpoints.
        save_to_disk: let this process write; by default only rank 0 does.
        checkpointables: further objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(
            model,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **checkpointables,
        )
        self.path_manager = PathManager
        self._parsed_url_during_load: ParseResult | None = None

    def load(self, path: str | None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint into the model and the other objects.

        Args:
            path: a file, URL or ``detectron2://`` name; "" or None loads nothing.
            args: passed to fvcore's ``Checkpointer.load``.
            kwargs: passed to fvcore's ``Checkpointer.load``.

        Returns:
            The other entries of the checkpoint, such as ``iteration``.

        Raises:
            FileNotFoundError: there is no such file (on rank 0).
            ValueError: the file holds more than weights and plain values.
        """
        if not path:
            return super().load("", *args, **kwargs)
        parsed = urlparse(path)
        filename = self._local_file(parsed._replace(query="").geturl(), path)
        self._parsed_url_during_load = parsed
        need_sync = False
        if isinstance(self.model, DistributedDataParallel):
            all_have_file = comm.all_gather(filename is not None)
            if not all_have_file[0]:
                raise FileNotFoundError(f"Rank 0 has no file {path}.")
            need_sync = not all(all_have_file)
            if need_sync:
                self.logger.warning(
                    f"Some ranks have no file {path} and get the weights of rank 0; "
                    "what else is in the file they start without."
                )
        elif filename is None:
            raise FileNotFoundError(f"Checkpoint {path} not found!")
        try:
            loaded = super().load(filename or "", *args, **kwargs)
        finally:
            self._parsed_url_during_load = None
        if need_sync:
            self.logger.info("Rank 0 sends its weights to all others")
            for tensor in self.model.state_dict().values():
                dist.broadcast(tensor, src=0)
        return loaded

    def _local_file(self, location: str, path: str) -> str | None:
        """Return the local copy of a file, or None if there is none."""
        try:
            local = self.path_manager.get_local_path(location)
        except OSError as error:
            self.logger.error(f"Cannot fetch checkpoint {path}: {error}")
            return None
        return local if os.path.isfile(local) else None

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a checkpoint file into a dict with ``model``.

        Raises:
            ValueError: the file is damaged, or holds more than weights and plain values.
        """
        loaded = self._read_file(filename)
        weights = loaded["model"]
        if not isinstance(weights, Mapping) or not all(
            isinstance(name, str) and isinstance(value, (np.ndarray, torch.Tensor))
            for name, value in weights.items()
        ):
            raise ValueError(
                f"{filename} is not a plain checkpoint: 'model' is not a dict of tensors by name."
            )
        return loaded

    def _read_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        if filename.endswith(".pyth"):
            loaded = self._torch_load(filename)
            if not isinstance(loaded, dict) or "model_state" not in loaded:
                raise ValueError(f"{filename} has no 'model_state', as pycls checkpoints have.")
            weights = loaded["model_state"]
            if isinstance(weights, Mapping):
                weights = {
                    key: value
                    for key, value in weights.items()
                    if not str(key).endswith("num_batches_tracked")
                }
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}

        loaded = self._torch_load(filename)
        if not isinstance(loaded, dict):
            raise ValueError(f"{filename} holds a {type(loaded).__name__}, not a checkpoint.")
        if "model" not in loaded:
            loaded = {"model": loaded}
        assert self._parsed_url_during_load is not None, "_load_file is only for load() to call"
        queries = parse_qs(self._parsed_url_during_load.query)
        if queries.pop("matching_heuristics", ["False"]) == ["True"]:
            loaded["matching_heuristics"] = True
        if queries:
            raise ValueError(
                f"Unsupported query {queries} in {self._parsed_url_during_load.geturl()}: "
                "only matching_heuristics=True is known."
            )
        return loaded

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        """Read a ``.pkl`` file of detectron2's or Caffe2's model zoo."""
        with self.path_manager.open(filename, "rb") as file:
            data = load_arrays(file, filename)
        if not isinstance(data, dict):
            raise ValueError(f"{filename} holds a {type(data).__name__}, not a checkpoint.")
        if "model" in data and "__author__" in data:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            return data
        # detection models of Caffe2 have "blobs", ImageNet models do not
        weights = data.get("blobs", data)
        if isinstance(weights, dict):
            weights = {k: v for k, v in weights.items() if not str(k).endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, filename: str) -> Any:
        """Read a file written by ``torch.save`` without running code from it."""
        try:
            with self.path_manager.open(filename, "rb") as file:
                return torch.load(file, map_location=torch.device("cpu"), weights_only=True)
        except Exception as error:  # the file may be anything, and only the file is to blame
            raise ValueError(
                f"{filename} is not a plain checkpoint and was not loaded: it is damaged, or holds "
                f"other things than tensors and plain values. torch.load says: {error}"
            ) from error

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Load the weights; returns missing, unexpected and misshapen keys."""
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(),
                checkpoint["model"],
                c2_conversion=checkpoint.get("__author__") == "Caffe2",
            )
        incompatible = super()._load_model(checkpoint)
        buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):
            # the config initializes these
            if name in buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        for key in incompatible.unexpected_keys[:]:
            # old checkpoints hold anchors, which are not saved any more
            if "anchor_generator.cell_anchors" in key:
                incompatible.unexpected_keys.remove(key)
        return incompatible
