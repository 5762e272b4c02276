"""Processes of a run that fail in every way, while the others wait for them."""

import argparse
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm

from tokendetr.errors import ConfigError
from tokendetr.train.stop import StopSignals, TrainingInterrupted


def arguments(folder: Path, how: str, *, processes: int = 2, who: int = 1) -> argparse.Namespace:
    return argparse.Namespace(
        num_gpus=processes,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
        folder=str(folder),
        how=how,
        who=who,
    )


def fail(args: argparse.Namespace) -> None:
    """What every rank runs: rank ``args.who`` fails, the others wait in a collective for ever."""
    torch.set_num_threads(1)
    rank = comm.get_rank()
    Path(args.folder, f"pid{rank}").write_text(str(os.getpid()))
    comm.synchronize()
    if rank != args.who:
        if args.how != "signal":
            dist.all_reduce(torch.zeros(1))
            raise AssertionError("the collective came to an end")
        with StopSignals() as stop:
            args.watch.follow(stop)
            with stop.interruptible():
                time.sleep(1000)
    Path(args.folder, "failed_at").write_text(repr(time.time()))
    FAILURES[args.how](args)


def _memory(args):
    raise MemoryError("no memory for this")


def _expected(args):
    raise ConfigError(f"the config of rank {args.who} is wrong")


def _assertion(args):
    assert args.how == "something else", "an assertion of rank 1"


def _exit(args):
    raise SystemExit(7)


def _kill(args):
    os.kill(os.getpid(), signal.SIGKILL)


def _segmentation_fault(args):
    os.kill(os.getpid(), signal.SIGSEGV)


def _signal(args):
    """SIGTERM to this rank alone: all stop."""
    with StopSignals() as stop:
        args.watch.follow(stop)
        try:
            with stop.interruptible():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1000)
        except TrainingInterrupted:
            Path(args.folder, "stopped").write_text("")
            raise


def _launcher(args):
    """The program that started the ranks is killed: nobody is left to end them."""
    os.kill(os.getppid(), signal.SIGKILL)
    dist.all_reduce(torch.zeros(1))
    time.sleep(1000)


FAILURES = {
    "assertion": _assertion,
    "exit": _exit,
    "expected": _expected,
    "kill": _kill,
    "launcher": _launcher,
    "memory": _memory,
    "segmentation fault": _segmentation_fault,
    "signal": _signal,
}
