"""Runs of which one process fails in a chosen way, while the others wait for it."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm

from tests.patience import patience, wait_until
from tests.source_tree import ROOT
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
    """Let rank ``args.who`` fail while the others wait in a collective; run by every rank."""
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
    """Send SIGTERM to this rank alone: all stop."""
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
    """Kill the program that started the ranks."""
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

OUTCOMES = {
    # how: exit code, text shown, whether a traceback is shown
    "assertion": (1, "AssertionError: an assertion of rank", True),
    "exit": (7, "", False),
    "expected": (1, "error: the config of rank ", False),
    "kill": (137, "ended without an error message", False),
    "memory": (1, "MemoryError: no memory for this", True),
    "segmentation fault": (137, "ended without an error message", False),
    "signal": (143, "", False),
}


def run_failing(folder: Path, how: str, *, processes: int = 2, who: int = 1):
    """Run; return exit code, output and the seconds from failure to end."""
    command = [sys.executable, "-m", "tests.train.run_failing", str(folder), how]
    done = subprocess.run(
        [*command, str(processes), str(who)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(60),
        check=False,
    )
    lasted = time.time() - float((folder / "failed_at").read_text())
    return done.returncode, done.stdout, lasted


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_failure(folder: Path, how: str, *, processes: int = 2, who: int = 1) -> None:
    """Run, and assert exit code, message, duration and the end of all processes."""
    code, output, lasted = run_failing(folder, how, processes=processes, who=who)
    expected_code, text, has_traceback = OUTCOMES[how]
    if how == "segmentation fault":
        expected_code = code if code in (137, 139) else expected_code
    assert code == expected_code, output
    assert text in output, output
    assert ("Traceback" in output) == has_traceback, output
    assert output.count(text or "Traceback") == (1 if text else 0), output
    assert lasted < patience(10)
    pids = [int((folder / f"pid{rank}").read_text()) for rank in range(processes)]
    wait_until(lambda: not any(map(is_alive, pids)), 2, "the end of all ranks")
