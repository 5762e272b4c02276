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

from tokendetr.checkpoint.finite import place_of_nan, unusable_weights
from tokendetr.checkpoint.training_state import training_state_fault
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.errors import CheckpointError, CheckpointWriteError
from tokendetr.io.atomic import remove_quietly, write_atomically

__all__ = ["AtomicCheckpointer", "plain_state"]

logger = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"^\..+\.\d+\.tmp$")


def plain_state(value: Any, where: str = "checkpoint") -> Any:
    """Return a copy of a state that consists of tensors, containers, numbers and text alone.

    Numpy scalars become Python numbers and arrays become tensors, because ``torch.load`` with
    ``weights_only=True`` refuses numpy's types.

    Args:
        value: any nested state dict; its tensors are not copied.
        where: name for messages.

    Raises:
        TypeError: the state holds an object of another type; the message says where.
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
            # Versions of modules, which load_state_dict uses to convert old files.
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
    """detectron2's checkpointer, with files that are written atomically.

    All ranks call :meth:`save`; rank 0 writes. Files have upstream's layout: ``model``,
    ``trainer``, ``iteration``, ``ema_state`` and the other checkpointables.

    Args:
        model: the model; may be wrapped in DDP.
        save_dir: folder of the checkpoints.
        **checkpointables: further objects with ``state_dict`` and ``load_state_dict``.

    Attributes:
        identity: identity of the run, stored in every file.
        classes: names of the classes in order, stored in every file.
        file_classes: what the file that was loaded last holds as ``classes``; None if nothing.
        resumed_from: path of the checkpoint that the run was resumed from; "" if it was not.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: Any) -> None:
        super().__init__(model, save_dir, save_to_disk=True, **checkpointables)
        self.identity = ""
        self.classes: list[str] = []
        self.file_classes: Any = None
        self.resumed_from = ""
        self._prepared: tuple[str, dict[str, Any]] | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Save everything as ``<name>.pth`` and point ``last_checkpoint`` at it.

        Args:
            name: file name without extension.
            **kwargs: further plain data to store.

        Raises:
            CheckpointWriteError: raised on all ranks; the previous checkpoint is intact.
        """
        self._save(name, list(self.checkpointables), tag=True, extra=kwargs)

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Save only the model and its moving average; a run cannot be resumed from this file."""
        names = [key for key in self.checkpointables if key == "ema_state"]
        self._save(name, names, tag=False, extra=kwargs)

    def _save(self, name: str, parts: list[str], *, tag: bool, extra: dict[str, Any]) -> None:
        if not self.save_dir:
            return
        # On all ranks: a checkpointable may gather the states of all of them (RngState does), so a
        # state_dict() on rank 0 alone would wait for the others forever.
        data = {"model": self.model.state_dict()}
        for key in parts:
            data[key] = self.checkpointables[key].state_dict()
        data.update(extra)
        if self.identity:
            data["run"] = self.identity
        if self.classes:
            data["classes"] = self.classes
        failure: OSError | None = None
        if comm.is_main_process():
            try:
                self._write(f"{name}.pth", data, tag)
            except OSError as error:
                failure = error
        # Rank 0 raises only after this collective. If it raised at once, the others would go on to
        # the next step and hang in its gradient reduction until the timeout.
        message = comm.all_gather(None if failure is None else str(failure))[0]
        if failure is not None:
            raise failure
        if message is not None:
            raise CheckpointWriteError(errno.EIO, f"rank 0 reports: {message}")

    def _write(self, basename: str, data: dict[str, Any], tag: bool) -> None:
        path = os.path.join(self.save_dir, basename)
        logger.info("Saving checkpoint to %s", path)
        # Serialized in memory first, so that only write_atomically meets a failing disk: torch.save
        # reports a full disk as a RuntimeError without errno, and leaves a partial file.
        buffer = io.BytesIO()
        torch.save(plain_state(data), buffer)
        write_atomically(path, buffer.getbuffer())
        # Only when the file is complete, so that the pointer never names a partial one.
        if tag:
            self.tag_last_checkpoint(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point ``last_checkpoint`` at a file."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(path, last_filename_basename.encode())

    def remove_leftovers(self) -> None:
        """Remove temporary files of writers that were killed (on rank 0)."""
        if comm.is_main_process() and os.path.isdir(self.save_dir):
            for name in os.listdir(self.save_dir):
                if _TEMPORARY.match(name):
                    remove_quietly(os.path.join(self.save_dir, name))

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return bool(self._candidates(warn=False))

    def get_checkpoint_file(self) -> str:
        """Return the path of the checkpoint to resume from, or "".

        It is the file that ``last_checkpoint`` names. If that pointer is empty or its file is gone
        (upstream's checkpointer does not write it atomically), it is the newest
        ``model_<iteration>.pth``.
        """
        return next(iter(self._candidates()), "")

    def _candidates(self, *, warn: bool = True) -> list[str]:
        """Return the files to resume from, best first.

        The one that ``last_checkpoint`` names comes first, then the newest.
        """
        if not self.save_dir or not os.path.isdir(self.save_dir):
            return []
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
            elif names and warn:
                logger.warning("%s names no file; resuming from %s", pointer, names[0])
        return [os.path.join(self.save_dir, name) for name in names]

    def read_latest(self) -> tuple[str, dict[str, Any]]:
        """Return path and contents of the newest readable checkpoint to resume from.

        Damaged files, and files with NaN among weights or the optimizer's state, are skipped with a
        warning. The contents are kept: a following :meth:`load` of
        the path does not read the file again.

        Raises:
            CheckpointError: there are checkpoints, but none can be read.
        """
        failures: list[str] = []
        for path in self._candidates():
            try:
                data = self.read(path)
                if fault := training_state_fault(data) or self._nan_fault(data):
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
            "Restore one, or start over in another train.output_dir"
        )

    def _nan_fault(self, data: Mapping[str, Any]) -> str:
        """Return which numbers of a training's checkpoint would spoil the rest of it, or ""."""
        model: Any = getattr(self.model, "module", self.model)
        for part in ("model", "ema_state"):
            if faults := unusable_weights(data.get(part) or {}, model):
                return f"in its {part}, {'; '.join(faults)}"
        place = place_of_nan(data["trainer"].get("optimizer"), "trainer.optimizer")
        return f"its {place} holds NaN" if place else ""

    def read(self, path: str) -> dict[str, Any]:
        """Return the contents of a checkpoint without loading them into the model.

        The checkpoint is a path, a URL or ``detectron2://...``.
        """
        parsed = urlparse(path)
        location = self.path_manager.get_local_path(parsed._replace(query="").geturl())
        return read_checkpoint(location, query=parsed.query)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if self._prepared is not None and self._prepared[0] == filename:
            data, self._prepared = self._prepared[1], None
        else:
            parsed = getattr(self, "_parsed_url_during_load", None)
            data = read_checkpoint(filename, query="" if parsed is None else parsed.query)
        self.file_classes = data.get("classes")
        return data
