"""Whatever ends one process of a run ends all of them, soon, with its error and exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import patience, wait_until
from tokendetr.errors import SampleError
from tokendetr.train.failures import Failure

ROOT = Path(__file__).resolve().parents[2]

OUTCOMES = {
    # how: exit code, what is shown, whether a traceback is
    "assertion": (1, "AssertionError: an assertion of rank", True),
    "exit": (7, "", False),
    "expected": (1, "error: the config of rank ", False),
    "kill": (137, "ended without a word", False),
    "memory": (1, "MemoryError: no memory for this", True),
    "segmentation fault": (137, "ended without a word", False),
    "signal": (143, "", False),
}


def run_failing(folder: Path, how: str, *, processes: int = 2, who: int = 1):
    """Start the run; returns its exit code, its output and the seconds from failure to end."""
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
    """Run, and assert on everything that a failing run owes."""
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


@pytest.mark.parametrize("how", ["expected", "kill", "signal"])
def test_one_rank_ends_all(tmp_path, how):
    check_failure(tmp_path, how)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("how", OUTCOMES)
def test_any_rank_ends_all_whatever_happens_to_it(tmp_path, how, who):
    check_failure(tmp_path, how, who=who)


def test_ranks_end_when_their_launcher_is_gone(tmp_path):
    run_failing(tmp_path, "launcher")
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in (0, 1)]
    wait_until(lambda: not any(map(is_alive, pids)), 10, "the end of both ranks")


def test_broken_connections_are_taken_for_consequences():
    assert Failure.of(RuntimeError("[gloo/tcp] Connection closed by peer"), 0).is_consequence
    assert not Failure.of(RuntimeError("shapes do not match"), 0).is_consequence
    assert Failure.of(SystemExit(128 + signal.SIGTERM), 0).code == 143
    assert Failure.of(SystemExit("words"), 0) == Failure(0, 1, "words")


def test_a_loader_processs_traceback_is_left_out():
    """As torch raises it: the type, called with everything that the loader process had to say."""
    wrapped = (
        "Caught SampleError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x.py", line 1, in f\ntokendetr.errors.SampleError: cannot load a.png: '
        "OSError: truncated"
    )
    assert str(SampleError(wrapped)) == "cannot load a.png: OSError: truncated"
