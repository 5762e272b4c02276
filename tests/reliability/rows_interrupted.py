"""Rows of trainings that are killed, or whose disk fails at one system call."""

import importlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.reliability.campaign import Unavailable, row
from tests.reliability.training_runs import (
    assert_metrics_are_whole,
    assert_same_weights,
    exit_code,
    start_warm,
    train_here,
    uninterrupted,
    write_data,
)
from tokendetr.checkpoint.weights import read_checkpoint

PLACES = {
    # Where a process dies: an attribute, and how often it is called in a whole run.
    "write": ("os.write", 20),
    "fsync": ("os.fsync", 60),
    "rename": ("os.replace", 60),
    "step": ("tokendetr.train.trainer.Trainer.run_step", 24),
    "evaluation": ("tokendetr.evaluation.run.Evaluation._run", 4),
    "data loading": ("tokendetr.data.named_errors.NamedErrors.__call__", 130),
    "best checkpoint": ("tokendetr.train.hooks.BestCheckpoint._update", 26),
    "removal": ("tokendetr.train.hooks._remove", 6),
}


def die_in(place: str, count: int) -> None:
    """Let this process be killed at the ``count``-th call of a function."""
    module, _, name = place.rpartition(".")
    try:
        owner: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        module, _, cls = module.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    original, calls = getattr(owner, name), itertools.count(1)

    def counted(*args, **options):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, name, counted)


def write_output_to(path: str | Path) -> None:
    """Send what this process prints to a file."""
    output = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)


def killed_run(root: Path, output: Path, place: str, count: int) -> None:
    """Train in a process that is killed at a call; the target of :func:`start_warm`."""
    write_output_to(os.devnull)
    die_in(place, count)
    train_here(root, output, resume=True)


@row(
    "TR1",
    "kill -9 in a write, fsync, rename, step, evaluation, data loading, then --resume",
    target="0 lost runs; final weights, evaluations and metrics as uninterrupted, bit for bit",
    default=1,
    nightly=150,
    unit="kills",
)
def kills(seed: int, folder: Path) -> int:
    """One to three kills of one run, each at a seeded call of a seeded place."""
    draw = random.Random(seed)
    root = write_data(folder)
    done = 0
    for _ in range(draw.randint(1, 3)):
        place, most = PLACES[draw.choice(list(PLACES))]
        process = start_warm(killed_run, root, folder / "run", place, draw.randint(1, most))
        code = exit_code(process)
        assert code in (0, -signal.SIGKILL), code
        done += code == -signal.SIGKILL
        for path in (folder / "run").glob("model_*.pth"):
            read_checkpoint(str(path))
    train_here(root, folder / "run", resume=True)
    whole = uninterrupted()
    assert_same_weights(whole, folder / "run")
    assert_metrics_are_whole(folder / "run")
    best = [read_checkpoint(str(f / "model_best.pth")) for f in (whole, folder / "run")]
    assert best[0]["best_metric"] == best[1]["best_metric"]
    assert len(list((folder / "run").glob("model_0*.pth"))) <= 2
    return done


FAULTS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
CALLS = ("openat", "mkdir", "write", "fsync", "ftruncate", "rename", "unlink")


class Call(NamedTuple):
    """A system call of a run that touches its folder.

    Attributes:
        name: of the call; number: its place among all calls of this name, from 1.
        path: the file, without the process's id, relative to the run's folder.
    """

    name: str
    number: int
    path: str


def traced_run(root: Path, output: Path, printed: Path) -> None:
    """Train in a process that strace traces, once it has attached."""
    write_output_to(printed)
    torch.set_num_threads(1)
    status = Path("/proc/self/status")
    while "TracerPid:\t0\n" in status.read_text():
        time.sleep(0.01)
    train_here(root, output, resume=True)


def trace(folder: Path, log: Path, options: Sequence[str]) -> int:
    """Train in ``folder/run`` under strace, and return the exit code of the training."""
    if shutil.which("strace") is None:
        raise Unavailable("needs strace (apt-get install strace)")
    root = write_data(folder)
    process = start_warm(traced_run, root, folder / "run", folder / "printed")
    strace = subprocess.Popen(
        ["strace", "-f", "-y", "-o", str(log), *options, "-p", str(process.pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        return exit_code(process)
    finally:
        _, complaint = strace.communicate()
        if not log.is_file() or "exited with" not in log.read_text():
            raise Unavailable(f"strace cannot attach here: {complaint.decode()[-200:]}")


@cache
def calls_of_a_run() -> list[Call]:
    """Return the system calls by which an undisturbed run changes its folder, in order."""
    folder = Path(uninterrupted()).parent / "traced"
    folder.mkdir()
    assert trace(folder, folder / "log", [f"--trace={','.join(CALLS)}"]) == 0
    numbers: Counter[str] = Counter()
    found = []
    for line in (folder / "log").read_text().splitlines():
        if (call := re.match(r"\d+ +(\w+)\(", line)) is None:
            continue
        numbers[call[1]] += 1
        if path := re.search(rf"{re.escape(str(folder / 'run'))}/?([^\">]*)", line):
            name = re.sub(r"\.\d+\.tmp$", ".tmp", path[1])
            found.append(Call(call[1], numbers[call[1]], name))
    return found


@row(
    "TR2",
    "no space, I/O error, quota, read-only at one system call of a run, then --resume",
    target="an error that names the file, or a run that goes on; the checkpoint before intact",
    default=1,
    nightly=100,
    unit="faults",
)
def full_disk(seed: int, folder: Path) -> int:
    """Strace injects the fault into a call that an undisturbed run makes in its folder.

    Calls are counted, and workers and threads change their order a little from run to run, so the
    fault may hit a neighboring call on another file, such as an image. That file is named then.
    """
    draw = random.Random(seed)
    calls = calls_of_a_run()
    kind = draw.choice(sorted({call.name for call in calls}))
    call = draw.choice([call for call in calls if call.name == kind])
    fault = f"inject={call.name}:error={draw.choice(FAULTS)}:when={call.number}"
    log = folder / "log"
    code = trace(folder, log, [f"--trace={call.name}", "-e", fault])
    faulty = re.findall(r"^.*\(INJECTED\)", log.read_text(), flags=re.MULTILINE)
    run = folder / "run"
    if code:
        printed = (folder / "printed").read_text()
        assert faulty, printed[-600:]
        names = ("CheckpointWriteError", "RunFolderError", "OSError")
        assert any(name in printed for name in names), printed[-600:]
        files = re.findall(r"[\"<](/[^\">]+)", faulty[0])
        assert any(path in printed for path in (str(run), *files)), printed[-600:]
    for path in run.glob("model_*.pth"):
        read_checkpoint(str(path))
    train_here(folder / "data", run, resume=True)
    assert_same_weights(uninterrupted(), run)
    return len(faulty)
