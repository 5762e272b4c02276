"""Claim a run's output folder: one run per folder, one writing process at a time."""

import datetime
import json
import os
import re
import secrets
import socket
from types import TracebackType
from typing import Any

from detectron2.utils import comm

from tokendetr.errors import RunFolderError
from tokendetr.io.atomic import write_atomically
from tokendetr.io.locks import lock_folder
from tokendetr.io.outputs import creation_fault

__all__ = ["RunFolder"]

_IDENTITY = "run.json"
_CHECKPOINT = re.compile(r"^model_(\d{7,}|final)\.pth$")


class RunFolder:
    """Exclusive use of an output folder by one run and one writing process.

    ``run.json`` records the run and its current writer, for messages. A lock of the operating
    system decides whether that writer is alive: it ends with the process that holds it, so a killed
    run leaves nothing to clean up, and the next one takes over by acquiring the lock.

    All ranks enter it as a context manager; rank 0 does the work.

    Args:
        path: ``train.output_dir``.
        resume: continue the run that is there.

    Raises:
        RunFolderError: raised on entry, on rank 0: another process writes to the folder, it holds
            checkpoints of a run that is not to be continued, or it cannot be used as a folder.
    """

    def __init__(self, path: str, *, resume: bool) -> None:
        self.path = path
        self.identity = ""
        self._resume = resume
        self._adopts = False
        self._lock: Any = None
        self._state: dict[str, Any] = {}

    def __enter__(self) -> "RunFolder":
        if self.path and comm.is_main_process():
            self._claim()
        comm.synchronize()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def evaluated(self) -> int:
        """Last iteration whose evaluation is recorded, -1 if there is none (rank 0)."""
        found = self._state.get("evaluated")
        return found if isinstance(found, int) else -1

    def mark_evaluated(self, iteration: int) -> None:
        """Record that the results of the evaluation after an iteration are written."""
        if self.path and comm.is_main_process():
            self._state["evaluated"] = iteration
            self._write()

    def owns(self, identity: str | None) -> bool:
        """Return whether a checkpoint with this identity belongs to this run.

        Checkpoints of other codes have no identity and are accepted. If ``run.json`` is missing or
        damaged, the run takes over the identity of the first checkpoint.
        """
        if self._adopts and identity:
            self.identity, self._adopts = identity, False
            self._write()
        return identity is None or identity == self.identity

    def _claim(self) -> None:
        try:
            os.makedirs(self.path, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = creation_fault(error) if isinstance(error, OSError) else error
            raise RunFolderError(
                f"train.output_dir={self.path!r} cannot be used as a folder: {reason}. Choose "
                "another one"
            ) from error
        # Before anything is read: two processes could both find the folder free otherwise.
        self._lock = lock_folder(self.path, self._owner)
        try:
            saved = self._read()
            has_checkpoint = any(map(_CHECKPOINT.match, os.listdir(self.path)))
            if has_checkpoint and not self._resume:
                raise RunFolderError(self._occupied())
            continues = has_checkpoint and self._resume
            self._state = saved if continues else {}
            self._state.pop("started", None)  # the start of the process that writes, not the run
            self._adopts = continues and not saved.get("run")
            self.identity = str(self._state.get("run") or secrets.token_hex(8))
            self._write()
        except BaseException:
            self._lock.release()
            raise

    def _owner(self) -> str:
        saved = self._read()
        if not saved.get("pid"):
            return "another process"
        return f"process {saved['pid']} on {saved.get('host')} (since {saved.get('started')})"

    def _occupied(self) -> str:
        return (
            f"{self.path} holds the checkpoints of an earlier run, and a new one would mix with "
            "them. Continue that run with --resume, give this one a folder of its own with "
            "train.output_dir=..., or move the folder away"
        )

    def _read(self) -> dict[str, Any]:
        try:
            with open(os.path.join(self.path, _IDENTITY), encoding="utf-8") as file:
                saved = json.load(file)
        except (OSError, ValueError, RecursionError):  # missing or damaged; see owns()
            return {}
        return saved if isinstance(saved, dict) else {}

    def _write(self) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        state = {
            **self._state,
            "run": self.identity,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._state.get("started", now),
        }
        self._state = state
        content = json.dumps(state, indent=1) + "\n"
        write_atomically(os.path.join(self.path, _IDENTITY), content.encode())
