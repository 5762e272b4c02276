"""Two gloo processes on this machine, and models that they train together."""

import atexit
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokendetr.train.process_group import Environment, process_group


def run_two_processes(work: Callable[..., None], folder: Path, *args: Any) -> None:
    """Run ``work(rank, folder, *args)`` in two processes of one thread each, joined.

    They are forked from a server that has imported the libraries, once for all tests of a run:
    imports take many times as long as what the processes do. The server has no other state of the
    tests, nor the environment variables that they set.

    Raises:
        ProcessRaisedException: ``work`` raised, or a thread of the group survived it.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.small_detectors"])
    mp.start_processes(_join, args=(work, str(folder), args), nprocs=2, start_method="forkserver")


def _join(rank: int, work: Callable[..., None], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    with process_group("gloo", Environment(rank, 2, rank, 2, f"file://{folder}/rendezvous")):
        work(rank, folder, *args)
    # Such a thread would abort the process, now and then, when the interpreter shuts down.
    assert not gloo_threads()


def report_threads_at_exit(file: Path) -> None:
    """Write the gloo threads of this process to a file when the process ends."""
    atexit.register(lambda: file.write_text(" ".join(gloo_threads())))


def gloo_threads() -> list[str]:
    """Return the names of this process's gloo threads (none outside Linux)."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def gradients(model: nn.Module, records: list[dict]) -> dict[str, Tensor]:
    """Gradients of the sum of all losses, by parameter, with images in float64."""
    losses = model([one | {"image": one["image"].double()} for one in records])
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def save_common_gradients(rank: int, model: nn.Module, records: list[dict], file: Path) -> None:
    """Train on this rank's records; rank 0 saves the gradients that all ranks agree on."""
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # the second pass raises if a parameter had no gradient in the first
        wrapped.zero_grad()
        gradients(wrapped, records)
    if rank == 0:
        torch.save({name: one.grad for name, one in model.named_parameters()}, file)


def assert_gradients_of_whole_batch(
    file: Path, model: nn.Module, records: list[dict], *, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """Compare saved gradients with those of one process on all records."""
    both = torch.load(file, weights_only=True)
    alone = gradients(model, records)
    assert set(both) == set(alone)
    for name, gradient in alone.items():
        torch.testing.assert_close(both[name], gradient, rtol=rtol, atol=atol)
