"""Loader processes that outlive a signal meant for the training process.

A terminal sends Ctrl-C, and a batch system its SIGTERM, to every process of a job. The training
process then finishes its step and saves a checkpoint, for which it still needs its loaders.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch.utils.data as torchdata

__all__ = ["obey_parent", "protect_workers"]


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
