"""SIGTERM and SIGINT at every moment of a run, and the work that a resumed run makes up for."""

import json
import os
import signal

import pytest
import torch

from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.data.named_errors import NamedErrors
from tokendetr.evaluation.run import Evaluation
from tokendetr.train.stop import StopSignals, TrainingInterrupted

OPTIONS = ["train.eval_period=5", "train.checkpointer.period=4", "train.log_period=2"]


def metrics(folder):
    """Return the lines of metrics.json without the measured seconds."""
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    timed = ("time", "data_time", "rank_data_time", "eta_seconds")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def assert_same_run(one, two):
    """Compare weights, best weights and metrics with those of the uninterrupted run."""
    for name in ("model_final.pth", "model_best.pth"):
        first, second = (read_checkpoint(str(folder / name)) for folder in (one, two))
        assert all(torch.equal(v, second["model"][k]) for k, v in first["model"].items()), name
        for key in ("best_metric", "iteration"):
            assert first.get(key) == second.get(key), (name, key)
    iterations = [row["iteration"] for row in metrics(two)]
    assert iterations == [row["iteration"] for row in metrics(one)] == sorted(set(iterations))
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert second == pytest.approx(first, nan_ok=True)


@pytest.fixture(scope="module")
def whole(toy_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    toy_run(folder, *OPTIONS)
    return folder


def call_after(monkeypatch, owner, name, count, action):
    """Precede the ``count``-th call of a method by an action."""
    original, calls = getattr(owner, name), [0]

    def counted(self, *args):
        calls[0] += 1
        if calls[0] == count:
            action()
        return original(self, *args)

    monkeypatch.setattr(owner, name, counted)


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [(Evaluation, "_run", 1), (Evaluation, "_run", 3), (NamedErrors, "__call__", 30)],
    ids=["evaluation", "last evaluation", "data loading"],
)
def test_stops_at_once_and_makes_up(
    toy_run, tmp_path, monkeypatch, whole, number, owner, name, count
):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        call_after(patch, owner, name, count, send(number))
        with pytest.raises(TrainingInterrupted) as caught:
            toy_run(tmp_path / "parts", *OPTIONS)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    toy_run(tmp_path / "parts", *OPTIONS, resume=True)
    assert_same_run(whole, tmp_path / "parts")


def test_interrupted_data_loading_loses_no_step(toy_run, tmp_path, monkeypatch):
    """4 images per step: the 30th is read in step 7, and 6 are saved although the period is 4."""
    call_after(monkeypatch, NamedErrors, "__call__", 30, send(signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        toy_run(tmp_path, "train.checkpointer.period=0", "train.eval_period=0")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000006.pth"
    saved = read_checkpoint(str(tmp_path / "model_0000006.pth"))
    assert saved["iteration"] == saved["trainer"]["iteration"] == 6
    assert saved["data_state"]["images"] == 28


def test_before_the_first_step_nothing_is_left(toy_run, tmp_path, monkeypatch):
    call_after(monkeypatch, NamedErrors, "__call__", 1, send(signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        toy_run(tmp_path, *OPTIONS)
    assert not list(tmp_path.glob("*.pth"))
    toy_run(tmp_path, *OPTIONS)  # the folder is free


class Killed(BaseException):
    """Stands for SIGKILL: no code of the run that would save anything runs afterward."""


def kill():
    raise Killed


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("tokendetr.train.hooks.Checkpoints._save_final", 1),
        ("tokendetr.evaluation.run.Evaluation._run", 1),
        ("tokendetr.evaluation.run.Evaluation._run", 3),
        ("tokendetr.train.hooks.BestCheckpoint._update", 5),
        ("tokendetr.train.writers.Writers._write", 5),
        ("tokendetr.train.writers.Writers._write", 7),
        ("tokendetr.train.run_folder.RunFolder.mark_evaluated", 1),
        ("tokendetr.train.run_folder.RunFolder.mark_evaluated", 3),
    ],
)
def test_what_was_due_at_a_kill_is_made_up(toy_run, tmp_path, monkeypatch, whole, path, count):
    module, _, rest = path.rpartition(".")
    module, _, owner = module.rpartition(".")
    target = getattr(__import__(module, fromlist=[owner]), owner)
    with monkeypatch.context() as patch:
        call_after(patch, target, rest, count, kill)
        with pytest.raises(Killed):
            toy_run(tmp_path / "parts", *OPTIONS)
    toy_run(tmp_path / "parts", *OPTIONS, resume=True)
    assert_same_run(whole, tmp_path / "parts")
    # And once more: a finished run has nothing to make up.
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("model_*")}
    toy_run(tmp_path / "parts", *OPTIONS, resume=True)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("model_*")} == before
    assert_same_run(whole, tmp_path / "parts")


def test_repeated_sigterm_means_the_first():
    with StopSignals() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(TrainingInterrupted), stop.interruptible():
            pytest.fail("an interruptible block was entered")


def test_another_thread_interrupts_a_wait():
    import threading
    import time

    with StopSignals() as stop:
        threading.Timer(0.05, stop.request, [signal.SIGTERM]).start()
        with pytest.raises(TrainingInterrupted), stop.interruptible():
            time.sleep(60)
