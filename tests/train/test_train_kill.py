"""After kill -9 at any moment files are whole, and a resumed run ends with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.patience import patience
from tests.source_tree import ROOT
from tokendetr.checkpoint.weights import read_checkpoint

OVERRIDES = [
    "train.max_iter=60",
    "train.checkpointer.period=3",
    "train.checkpointer.max_to_keep=3",
    "train.eval_period=20",
    "train.log_period=10",
    "train.model_ema.enabled=True",
    "dataloader.train.num_workers=1",
]


class Program:
    """``tools/train_net.py`` in a process group of its own."""

    def __init__(self, data: Path, output: Path, *options: str):
        environment = {
            **os.environ,
            "TOY_ROOT": str(data),
            "TOY_OUTPUT": str(output),
            "OMP_NUM_THREADS": "1",
        }
        command = [
            sys.executable,
            "tools/train_net.py",
            "--config-file",
            "tests/train/toy_config.py",
        ]
        self.output = output
        self.log = output.with_suffix(".txt").open("a")
        self.process = subprocess.Popen(
            [*command, *options, *OVERRIDES],
            cwd=ROOT,
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> int:
        code = self.process.wait(patience(90))
        self.log.close()
        return code

    def saves(self) -> int:
        """Number of the newest checkpoint on disk."""
        names = [p.name for p in self.output.glob("model_0*.pth")]
        return max((int(name[6:13]) for name in names), default=-1)

    def kill_after(self, seconds: float) -> None:
        """kill -9 so long after the next checkpoint is there (or the run has ended)."""
        first = self.saves()
        while self.process.poll() is None and self.saves() <= first:
            time.sleep(0.005)
        time.sleep(seconds)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    def stop(self, number: int) -> int:
        first = self.saves()
        while self.process.poll() is None and self.saves() <= first:
            time.sleep(0.005)
        os.killpg(self.process.pid, number)  # as terminals and batch systems do: loaders too
        return self.wait()


def check_files(folder: Path) -> None:
    """Every checkpoint is whole, and the pointer names one."""
    for path in folder.glob("model_*.pth"):
        read_checkpoint(str(path))
    assert (folder / (folder / "last_checkpoint").read_text()).is_file()


def final_states(folder: Path):
    saved = read_checkpoint(str(folder / "model_final.pth"))
    return {**saved["model"], **{f"ema.{k}": v for k, v in saved["ema_state"].items()}}


def assert_bitwise(first: Path, second: Path) -> None:
    one, two = final_states(first), final_states(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(toy_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill") / "whole"
    folder.parent.mkdir(exist_ok=True)
    assert Program(toy_root, folder).wait() == 0, folder.with_suffix(".txt").read_text()[-3000:]
    return folder


def kill_and_resume(toy_root, folder: Path, kills: int, seed: int) -> int:
    """Kill at random moments, resuming each time; return how often a run was really killed."""
    moments = random.Random(seed)
    done = 0
    for _ in range(kills):
        program = Program(toy_root, folder, "--resume")
        program.kill_after(moments.uniform(0.0, 0.4))
        check_files(folder)
        done += program.process.returncode == -signal.SIGKILL
        if program.process.returncode == 0:
            break
    assert Program(toy_root, folder, "--resume").wait() == 0
    check_files(folder)
    return done


def test_killed_runs_end_with_the_same_bits(toy_root, uninterrupted, tmp_path):
    killed = kill_and_resume(toy_root, tmp_path / "run", kills=2, seed=0)
    assert killed >= 1
    assert_bitwise(uninterrupted, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills(toy_root, uninterrupted, tmp_path):
    killed = 0
    for run in range(20):
        killed += kill_and_resume(toy_root, tmp_path / f"run{run}", kills=4, seed=run + 1)
        assert_bitwise(uninterrupted, tmp_path / f"run{run}")
        if killed >= 20:
            return
    pytest.fail(f"only {killed} runs were alive when they were to be killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_leave(toy_root, uninterrupted, tmp_path, number):
    folder = tmp_path / "run"
    program = Program(toy_root, folder)
    assert program.stop(number) == 128 + number
    assert "continue with --resume" in folder.with_suffix(".txt").read_text()
    check_files(folder)
    assert Program(toy_root, folder, "--resume").wait() == 0
    assert_bitwise(uninterrupted, folder)
