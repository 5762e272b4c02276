"""Small trainings for the campaigns: in this process, and in processes that start warm."""

import atexit
import functools
import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate

from tests.patience import patience
from tests.train import toy
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.config.load import fill_defaults
from tokendetr.train.run import train

ITERATIONS = 24
OPTIONS = [
    f"train.max_iter={ITERATIONS}",
    "train.eval_period=6",
    "train.log_period=2",
    "train.checkpointer.period=4",
    "train.checkpointer.max_to_keep=2",
]
"""Overrides of a run with checkpoints, evaluations and lines of the log at different steps."""


def write_data(folder: Path) -> Path:
    """Write the toy data set into a subfolder, and return that."""
    root = folder / "data"
    toy.write_dataset(root)
    return root


def train_here(root: Path, output: Path, *options: str, resume: bool = False) -> torch.nn.Module:
    """Train in this process, and return the model."""
    cfg = toy.make_config(root, output)
    fill_defaults(cfg)
    LazyConfig.apply_overrides(cfg, [*OPTIONS, *options])
    torch.manual_seed(cfg.train.seed)
    model = instantiate(cfg.model)
    train(cfg, model, resume=resume)
    return model


@functools.cache
def uninterrupted(*options: str) -> Path:
    """Return the folder of a run that nothing happened to; one for each set of options."""
    folder = Path(tempfile.mkdtemp(prefix="uninterrupted-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    train_here(write_data(folder), folder / "run", *options)
    return folder / "run"


def start_warm(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a process that has everything imported, and has trained once (``warm.py``).

    Imports take several times as long as such a training, and they are what a kill would hit.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.reliability.warm"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def exit_code(process: BaseProcess, seconds: float = 120.0) -> int:
    """Return the exit code of a process that needs at most some seconds of an idle CPU."""
    process.join(seconds)
    if process.exitcode is None:
        process.join(patience(seconds))
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the run hangs")
    return process.exitcode


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = (read_checkpoint(str(f / "model_final.pth"))["model"] for f in (one, two))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def assert_metrics_are_whole(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    seen = [r["iteration"] for r in rows]
    assert seen == sorted(set(seen)), seen
    evaluated = [r["iteration"] for r in rows if "bbox/AP" in r]
    assert evaluated == [*range(5, ITERATIONS - 1, 6), ITERATIONS], evaluated
