"""A loader process that dies is reported in one line: in training, evaluation and benchmarks."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from torch.utils.data import get_worker_info

from tests.patience import patience
from tests.train import toy
from tokendetr.analysis.throughput import loader_speed
from tokendetr.config.load import fill_defaults
from tokendetr.data.workers import named_loader_failures, obey_parent
from tokendetr.errors import EXPECTED_ERRORS, LoaderError
from tokendetr.train.run import evaluate, train


class DyingMapper:
    """A mapper whose loader process ends while it loads image ``image_id``."""

    def __init__(self, mapper, image_id, how):
        self.mapper = mapper
        self.image_id = image_id
        self.how = how

    def __call__(self, record):
        if record["image_id"] == self.image_id and get_worker_info() is not None:
            if self.how == "exit":
                os._exit(3)
            if self.how == "unsendable":
                return {**self.mapper(record), "more": lambda: None}
            os.kill(os.getpid(), signal.SIGKILL)
        return self.mapper(record)


def config(root, output, part, how):
    cfg = toy.make_config(root, output)
    fill_defaults(cfg)
    LazyConfig.apply_overrides(cfg, [f"dataloader.{part}.num_workers=1", "train.max_iter=6"])
    node = cfg.dataloader[part]
    node.mapper = L(DyingMapper)(mapper=node.mapper, image_id=5, how=how)
    return cfg


@pytest.mark.parametrize(
    ("part", "how"),
    [
        ("train", "kill"),
        ("train", "exit"),
        ("test", "kill"),
        ("test", "exit"),
        ("test", "unsendable"),
    ],
)
def test_a_dead_loader_process_ends_the_run_in_one_line(toy_root, tmp_path, part, how):
    cfg = config(toy_root, tmp_path / "out", part, how)
    model = instantiate(cfg.model)
    with pytest.raises(LoaderError, match="dataloader.train.num_workers") as caught:
        if part == "train":
            train(cfg, model, resume=False)
        else:
            evaluate(cfg, model)
    assert isinstance(caught.value, EXPECTED_ERRORS)
    assert len(str(caught.value).splitlines()) == 1


def test_a_benchmark_of_a_loader_ends_with_its_process(toy_root, tmp_path):
    cfg = config(toy_root, tmp_path / "out", "train", "unsendable")
    with pytest.raises(LoaderError), named_loader_failures():
        loader_speed(cfg.dataloader.train, 8, warmup=0)


def test_processes_of_a_pool_are_told_that_they_can_have_no_loader_processes(
    toy_root, tmp_path, monkeypatch
):
    cfg = config(toy_root, tmp_path / "out", "train", "exit")
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(LoaderError, match="num_workers=0"):
        train(cfg, instantiate(cfg.model), resume=False)


def test_other_errors_of_the_same_type_stay():
    with pytest.raises(RuntimeError, match="shapes") as caught, named_loader_failures():
        raise RuntimeError("shapes do not match")
    assert not isinstance(caught.value, LoaderError)


def test_used_up_shared_memory_is_said():
    with pytest.raises(LoaderError, match="/dev/shm"), named_loader_failures():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is ...")


def test_a_parent_that_hangs_up_is_no_traceback_of_its_loader_process():
    """Nor is another error hidden; the signals that the process obeys are its own."""
    script = (
        "import sys, os; from tokendetr.data.workers import obey_parent; obey_parent(0);"
        "hook = lambda e: sys.excepthook(type(e), e, None);"
        "hook(BrokenPipeError('hung up')); hook(EOFError()); hook(KeyError('a fault'));"
        "os.kill(os.getpid(), __import__('signal').SIGHUP)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stderr.strip() == "KeyError: 'a fault'"


def _obey_below_a_server(pipe):
    """Obey the parent in a process that another one started for it, as a fork server does."""
    if os.fork():
        os._exit(0)
    obey_parent(0)
    pipe.send(os.getpid())
    threading.Event().wait()


def test_a_loader_process_obeys_who_asked_for_it():
    ours, its = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    server = context.Process(target=_obey_below_a_server, args=(its,))
    server.start()
    its.close()
    server.join()
    loader_process = ours.recv()
    os.kill(loader_process, signal.SIGTERM)
    try:
        assert ours.poll(patience(5))
        with pytest.raises(EOFError):
            ours.recv()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(loader_process, signal.SIGKILL)
