"""Two gloo processes on this machine."""

import atexit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from tokendetr.train.process_group import Environment, process_group


def run_two_processes(work: Callable[..., None], folder: Path, *args: Any) -> None:
    """Run ``work(rank, folder, *args)`` in two spawned processes of one thread each, joined.

    Raises:
        ProcessRaisedException: ``work`` raised, or a thread of the group survived it.
    """
    mp.spawn(_join, args=(work, str(folder), args), nprocs=2)


def _join(rank: int, work: Callable[..., None], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    with process_group("gloo", Environment(rank, 2, rank, 2, f"file://{folder}/rendezvous")):
        work(rank, folder, *args)
    # Such a thread would abort the process, now and then, when the interpreter shuts down.
    assert not gloo_threads()


def report_threads_at_exit(file: Path) -> None:
    """Write, when this process ends, which gloo threads it still has."""
    atexit.register(lambda: file.write_text(" ".join(gloo_threads())))


def gloo_threads() -> list[str]:
    """The names of this process's gloo threads (none outside Linux)."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]
