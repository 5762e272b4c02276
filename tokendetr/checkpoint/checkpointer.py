"""Checkpoints that a crash or a full disk cannot damage."""

import errno
import io
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn

from tokendetr.checkpoint.training_state import training_state_fault
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.errors import CheckpointError, CheckpointWriteError
from tokendetr.io.atomic import remove_quietly, write_atomically

__all__ = ["AtomicCheckpointer", "plain_state"]

logger = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"^\..+\.\d+\.tmp$")


def plain_state(value: Any, where: str = "checkpoint") -> Any:
    """A state with nothing but tensors, containers, numbers and text in it.

    Numpy scalars become Python numbers and arrays tensors, because ``torch.load`` with
    ``weights_only=True`` refuses them.

    Args:
        value: any nested state dict.
        where: name for messages.

    Raises:
        TypeError: something else is in it; the message says where.
    """
    if (
        value is None
        or isinstance(value, (bool, int, float, str, bytes))
        and not isinstance(value, np.generic)
    ):
        return value
    if isinstance(value, nn.Parameter):
        return value.detach()
    if isinstance(value, (Tensor, torch.dtype, torch.device, torch.Size)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, OrderedDict):
        copied = OrderedDict((k, plain_state(item, f"{where}.{k}")) for k, item in value.items())
        if hasattr(value, "_metadata"):
            # Versions of modules: loading asks for them.
            copied._metadata = value._metadata  # type: ignore[attr-defined]
        return copied
    if isinstance(value, Mapping):
        return {key: plain_state(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain_state(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(
        f"{where} is a {type(value).__name__}: a checkpoint holds tensors, numbers, text, lists "
        "and dicts only"
    )


class AtomicCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer with files that are written whole or not at all.

    All ranks call :meth:`save`; rank 0 writes. Files are laid out as upstream's: ``model``,
    ``trainer``, ``iteration``, ``ema_state`` and what else was added.

    Args:
        model: the model; may be wrapped in DDP.
        save_dir: where checkpoints are.
        **checkpointables: further objects with ``state_dict`` and ``load_state_dict``.

    Attributes:
        identity: of the run, kept in every file.
        resumed_from: path of the checkpoint that the run was resumed from; "" for none.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: Any) -> None:
        super().__init__(model, save_dir, save_to_disk=True, **checkpointables)
        self.identity = ""
        self.resumed_from = ""
        self._prepared: tuple[str, dict[str, Any]] | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Save everything as ``<name>.pth`` and point ``last_checkpoint`` at it.

        Args:
            name: file name without ending.
            **kwargs: further plain data.

        Raises:
            CheckpointWriteError: on all ranks; the previous checkpoint is intact.
        """
        self._save(name, list(self.checkpointables), tag=True, extra=kwargs)

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Save the model and its moving average alone; it is no file to resume from."""
        names = [key for key in self.checkpointables if key == "ema_state"]
        self._save(name, names, tag=False, extra=kwargs)

    def _save(self, name: str, parts: list[str], *, tag: bool, extra: dict[str, Any]) -> None:
        if not self.save_dir:
            return
        # Collective: a part may gather the states of all ranks.
        data = {"model": self.model.state_dict()}
        for key in parts:
            data[key] = self.checkpointables[key].state_dict()
        data.update(extra)
        if self.identity:
            data["run"] = self.identity
        failure: OSError | None = None
        if comm.is_main_process():
            try:
                self._write(f"{name}.pth", data, tag)
            except OSError as error:
                failure = error
        message = comm.all_gather(None if failure is None else str(failure))[0]
        if failure is not None:
            raise failure
        if message is not None:
            raise CheckpointWriteError(errno.EIO, f"rank 0 reports: {message}")

    def _write(self, basename: str, data: dict[str, Any], tag: bool) -> None:
        path = os.path.join(self.save_dir, basename)
        logger.info("Saving checkpoint to %s", path)
        # Serialised in memory first: then a failing disk is met by our own writing alone.
        buffer = io.BytesIO()
        torch.save(plain_state(data), buffer)
        write_atomically(path, buffer.getbuffer())
        if tag:
            self.tag_last_checkpoint(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point ``last_checkpoint`` at a file."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(path, last_filename_basename.encode())

    def remove_leftovers(self) -> None:
        """Remove temporary files of writers that were killed; only rank 0 does."""
        if comm.is_main_process() and os.path.isdir(self.save_dir):
            for name in os.listdir(self.save_dir):
                if _TEMPORARY.match(name):
                    remove_quietly(os.path.join(self.save_dir, name))

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The checkpoint to resume from, or "".

        The file that ``last_checkpoint`` names; where that is empty or gone (another program was
        killed while writing it) the newest ``model_<iteration>.pth``.
        """
        if not self.save_dir or not os.path.isdir(self.save_dir):
            return ""
        return next(iter(self._candidates()), "")

    def _candidates(self) -> list[str]:
        """The files to resume from, best first: the one that ``last_checkpoint`` names, then by
        iteration."""
        pointer = os.path.join(self.save_dir, "last_checkpoint")
        names = sorted(
            (n for n in os.listdir(self.save_dir) if re.match(r"^model_\d{7,}\.pth$", n)),
            reverse=True,
        )
        if os.path.isfile(pointer):
            with open(pointer, "rb") as file:
                name = os.path.basename(file.read().decode(errors="replace").strip())
            if name and "\0" not in name and os.path.isfile(os.path.join(self.save_dir, name)):
                names = [name, *(n for n in names if n != name)]
            elif names:
                logger.warning("%s names no file; resuming from %s", pointer, names[0])
        return [os.path.join(self.save_dir, name) for name in names]

    def read_latest(self) -> tuple[str, dict[str, Any]]:
        """The newest readable checkpoint to resume from, and its contents; :meth:`load` of that
        path does not read it again.

        A damaged one is named in a warning, and the one before it taken.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        failures: list[str] = []
        for path in self._candidates():
            try:
                data = self.read(path)
                if fault := training_state_fault(data):
                    raise CheckpointError(f"{path}: {fault}")
            except Exception as error:  # whatever a damaged file may raise
                logger.warning("Cannot resume from %s: %s", path, error)
                failures.append(str(error))
                continue
            if failures:
                logger.warning("Resuming from the checkpoint before it, %s", path)
            self._prepared = (path, data)
            return path, data
        raise CheckpointError(
            f"none of the checkpoints in {self.save_dir} can be read: {'; '.join(failures)}. "
            "Restore one, or start anew in another train.output_dir"
        )

    def read(self, path: str) -> dict[str, Any]:
        """The contents of a checkpoint (path, URL or ``detectron2://``), without loading them."""
        parsed = urlparse(path)
        location = self.path_manager.get_local_path(parsed._replace(query="").geturl())
        return read_checkpoint(location, query=parsed.query)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if self._prepared is not None and self._prepared[0] == filename:
            prepared, self._prepared = self._prepared[1], None
            return prepared
        parsed = getattr(self, "_parsed_url_during_load", None)
        return read_checkpoint(filename, query="" if parsed is None else parsed.query)
