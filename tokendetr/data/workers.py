"""Loader processes: they outlive a signal meant for the training process, and their end is said.

A terminal sends Ctrl-C, and a batch system its SIGTERM, to every process of a job. The training
process then finishes its step and saves a checkpoint, for which it still needs its loaders.
"""

import contextlib
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch.utils.data as torchdata

from tokendetr.errors import LoaderError

__all__ = ["named_loader_failures", "obey_parent", "protect_workers"]

_LOST_WORKER = re.compile(
    r"DataLoader (?:timed out|worker .*?(?:exited unexpectedly|killed by signal: [^.]*))"
)


def obey_parent(worker_id: int) -> None:
    """Let a loader process end on a signal of its parent alone (a ``worker_init_fn``)."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        # Blocked here and, by inheritance, in all threads: the signal waits for the one below.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def protect_workers(loader: Any) -> Any:
    """Add :func:`obey_parent` to what a DataLoader's workers do first; other loaders stay."""
    if isinstance(loader, torchdata.DataLoader):
        loader.worker_init_fn = _Both(loader.worker_init_fn)
    return loader


class _Both:
    """A ``worker_init_fn`` before or after another one (a class, so that it can be pickled)."""

    def __init__(self, first: Callable[[int], None] | None) -> None:
        self.first = first

    def __call__(self, worker_id: int) -> None:
        if self.first is not None:
            self.first(worker_id)
        obey_parent(worker_id)


@contextlib.contextmanager
def named_loader_failures() -> Iterator[None]:
    """A block in which the death of a loader process is an error of one line.

    PyTorch raises it wherever the main thread happens to be: in a handler of SIGCHLD.

    Raises:
        LoaderError: a loader process ended, was killed, or gave nothing in its ``timeout``.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        loss = _loss_of_worker(error)
        if not loss:
            raise
        # PyTorch would raise it again whenever another loader process ends, on the way out too;
        # it also notices lost ones while it waits for data.
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        reason = (
            "its shared memory is used up (see df /dev/shm)"
            if "Bus error" in loss
            else "most often the system does that when memory is used up (see dmesg)"
        )
        raise LoaderError(
            f"a process that loads data is gone: {loss}; {reason}. Use fewer of them, with "
            "dataloader.train.num_workers and dataloader.test.num_workers (0: none), and continue "
            "with --resume"
        ) from error


def _loss_of_worker(error: BaseException) -> str:
    """How a loader process was lost, in PyTorch's words; "" where an error is another one."""
    if found := _LOST_WORKER.search(str(error)):
        return found[0]
    # Its pipe may break before the system has said that it ended.
    if isinstance(error, (ConnectionError, EOFError)):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__") == torchdata.dataloader.__name__:
                return "its connection broke"
    return ""
