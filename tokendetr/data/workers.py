"""Loader processes: protect them from the run's stop signals, and report their unexpected end.

A terminal sends Ctrl-C and SIGHUP, and a batch system its SIGTERM, to every process of a job. The
training process then finishes its step and saves a checkpoint, for which it needs its workers.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch.utils.data as torchdata

from tokendetr.compat.worker_queue import end_if_sending_fails
from tokendetr.errors import LoaderError

__all__ = ["named_loader_failures", "obey_parent", "protect_workers"]

_LOST_WORKER = re.compile(
    r"DataLoader (?:timed out|worker .*?(?:exited unexpectedly|killed by signal: [^.]*))"
)


def obey_parent(worker_id: int) -> None:
    """Make a loader process ignore all stop signals but its parent's (a ``worker_init_fn``).

    Ctrl-C and SIGHUP are ignored. PyTorch ends workers by SIGTERM, which a batch system sends as
    well; a thread waits for it and exits only if the sender is the parent. A process that cannot
    send a batch ends too, for the parent would wait for that batch forever.
    """
    sys.excepthook = _say_but_of_connections
    end_if_sending_fails()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        # Blocked here and, by inheritance, in all later threads, so that the signal stays pending
        # until the thread below takes it with sigwaitinfo.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        starter = multiprocessing.parent_process()  # not the fork server between them, if any
        parent = os.getppid() if starter is None else starter.pid
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _say_but_of_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an exception of a loader process, unless it is that the parent hung up.

    A parent that a signal stops amid the transfer of a batch does so; the thread of multiprocessing
    that hands over batches would print a traceback.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def protect_workers(loader: Any) -> Any:
    """Add :func:`obey_parent` to a DataLoader's ``worker_init_fn``; return other loaders as is."""
    if isinstance(loader, torchdata.DataLoader):
        loader.worker_init_fn = _Both(loader.worker_init_fn)
    return loader


class _Both:
    """Call a ``worker_init_fn``, then :func:`obey_parent`; a class, so that it can be pickled."""

    def __init__(self, first: Callable[[int], None] | None) -> None:
        self.first = first

    def __call__(self, worker_id: int) -> None:
        if self.first is not None:
            self.first(worker_id)
        obey_parent(worker_id)


@contextlib.contextmanager
def named_loader_failures() -> Iterator[None]:
    """Turn the loss of a loader process in the ``with`` block into a one-line error.

    PyTorch raises its own error from a SIGCHLD handler, wherever the main thread happens to be.

    Raises:
        LoaderError: a loader process exited, was killed, exceeded its ``timeout``, or may not be
            started.
    """
    try:
        yield
    except AssertionError as error:
        if "daemonic processes" not in str(error):
            raise
        raise LoaderError(
            "a process of multiprocessing.Pool must not start data-loading processes: set "
            "dataloader.train.num_workers=0 and dataloader.test.num_workers=0, or use "
            "concurrent.futures.ProcessPoolExecutor"
        ) from error
    except (RuntimeError, ConnectionError, EOFError) as error:
        loss = _loss_of_worker(error)
        if not loss:
            raise
        # PyTorch's handler would raise again for every other worker that ends during the cleanup.
        # It is not needed: the loader also notices lost workers while it waits for data.
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        reason = "most often the system kills it when memory runs out (see dmesg)"
        if "Bus error" in loss:
            reason = "its shared memory is used up (see df /dev/shm)"
        elif "exited" in loss:
            reason = f"if it said why, that is above; else {reason}"
        raise LoaderError(
            f"a data-loading process was lost: {loss}; {reason}. Use fewer of them, with "
            "dataloader.train.num_workers and dataloader.test.num_workers (0: none), and continue "
            "with --resume"
        ) from error


def _loss_of_worker(error: BaseException) -> str:
    """Return PyTorch's words for the loss of a loader process, "" for other errors."""
    if found := _LOST_WORKER.search(str(error)):
        return found[0]
    # The worker's pipe may break before SIGCHLD arrives. Such errors count only if they passed
    # through the loader, since other code raises them too.
    if isinstance(error, (ConnectionError, EOFError)):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__") == torchdata.dataloader.__name__:
                return "its connection broke"
    return ""
