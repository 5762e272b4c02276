"""When one process of a run ends, all end soon, with its error and exit code."""

import signal

import pytest

from tests.patience import wait_until
from tests.train.failing import OUTCOMES, check_failure, is_alive, run_failing
from tokendetr.errors import SampleError
from tokendetr.train.failures import Failure


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


@pytest.mark.parametrize(
    "words",
    [
        "[gloo/tcp/unbound_buffer.cc:129] Timed out waiting 10000ms for send operation to complete",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)",
    ],
)
def test_a_process_that_is_stopped_is_said_in_one_line_by_those_that_wait_for_it(words):
    failure = Failure.of(RuntimeError(words), 0)
    assert failure.text.startswith("error: rank 0 waited in vain for another process")
    assert "train.distributed.collective_timeout" in failure.text
    assert len(failure.text.splitlines()) == 1 and failure.code == 1


def test_a_loader_processs_traceback_is_left_out():
    """The exception is made as torch makes it, from the type and the loader's whole text."""
    wrapped = (
        "Caught SampleError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x.py", line 1, in f\ntokendetr.errors.SampleError: cannot load a.png: '
        "OSError: truncated"
    )
    assert str(SampleError(wrapped)) == "cannot load a.png: OSError: truncated"
