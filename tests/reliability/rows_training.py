"""Rows of training: kills, full disks, non-finite losses, several processes, signals, a soak."""
# Over 350 lines: one row of the matrix after the other.

import atexit
import copy
import errno
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate

from tests.patience import patience
from tests.reliability.campaign import ROOT, row
from tests.train import failing, toy
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.config.load import fill_defaults
from tokendetr.errors import NonFiniteLossError
from tokendetr.train.run import train
from tokendetr.train.trainer import Trainer

OPTIONS = [
    "train.max_iter=24",
    "train.eval_period=6",
    "train.log_period=2",
    "train.checkpointer.period=4",
    "train.checkpointer.max_to_keep=2",
]


def data(folder: Path) -> Path:
    root = folder / "data"
    toy.write_dataset(root)
    return root


def train_here(root: Path, output: Path, *options: str, resume: bool = False) -> torch.nn.Module:
    """A training in this process."""
    cfg = toy.make_config(root, output)
    fill_defaults(cfg)
    LazyConfig.apply_overrides(cfg, [*OPTIONS, *options])
    torch.manual_seed(cfg.train.seed)
    model = instantiate(cfg.model)
    train(cfg, model, resume=resume)
    return model


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = (read_checkpoint(str(f / "model_final.pth"))["model"] for f in (one, two))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def assert_metrics_are_whole(folder: Path, iterations: int) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    seen = [r["iteration"] for r in rows]
    assert seen == sorted(set(seen)), seen
    evaluated = [r["iteration"] for r in rows if "bbox/AP" in r]
    assert evaluated == [*range(5, iterations - 1, 6), iterations], evaluated


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


def killed_run(root: Path, output: Path, place: str, count: int) -> None:
    """What the process runs that is killed."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(1)
    die_in(place, count)
    train_here(root, output, resume=True)


def in_a_process(target: Callable[..., None], *arguments: Any) -> int:
    """The exit code of a process of its own; it starts at once, with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(patience(120))
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the run hangs")
    return process.exitcode


@functools.cache
def uninterrupted(*options: str) -> Path:
    """The folder of a run that nothing happened to."""
    folder = Path(tempfile.mkdtemp(prefix="uninterrupted-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    train_here(data(folder), folder / "run", *options)
    return folder / "run"


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
    root = data(folder)
    done = 0
    for _ in range(draw.randint(1, 3)):
        place, most = PLACES[draw.choice(list(PLACES))]
        code = in_a_process(killed_run, root, folder / "run", place, draw.randint(1, most))
        assert code in (0, -signal.SIGKILL), code
        done += code == -signal.SIGKILL
        for path in (folder / "run").glob("model_*.pth"):
            read_checkpoint(str(path))
    train_here(root, folder / "run", resume=True)
    whole = uninterrupted()
    assert_same_weights(whole, folder / "run")
    assert_metrics_are_whole(folder / "run", 24)
    best = [read_checkpoint(str(f / "model_best.pth")) for f in (whole, folder / "run")]
    assert best[0]["best_metric"] == best[1]["best_metric"]
    assert len(list((folder / "run").glob("model_0*.pth"))) <= 2
    return done


@row(
    "TR2",
    "no space, I/O error, quota, read-only at one system call of a run, then --resume",
    target="an error that names the file, or a run that goes on; the checkpoint before intact",
    default=0,
    nightly=100,
)
def full_disk(seed: int, folder: Path) -> None:
    """The fault is injected by strace into the n-th call of a kind."""
    if shutil.which("strace") is None:
        raise AssertionError("strace is needed: apt-get install strace")
    draw = random.Random(seed)
    root = data(folder)
    call = draw.choice(["write", "fsync", "rename", "ftruncate", "unlink"])
    code = draw.choice([errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
    script = (
        "import sys, tokendetr\nfrom pathlib import Path\n"
        "from tests.reliability import rows_training as rows\n"
        "rows.train_here(Path(sys.argv[1]), Path(sys.argv[2]), resume=True)\n"
    )
    run = folder / "run"
    run.mkdir()
    number = draw.randint(1, 40)
    done = subprocess.run(
        ["strace", "-f", "-o", "/dev/null", "-P", str(run), f"--trace={call}",
         "-e", f"inject={call}:error={errno.errorcode[code]}:when={number}",
         sys.executable, "-c", script, str(root), str(run)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=patience(200),
        check=False,
    )  # fmt: skip
    if done.returncode:
        names = ("CheckpointWriteError", "RunFolderError", "OSError")
        assert any(name in done.stderr for name in names), done.stderr[-600:]
    for path in run.glob("model_*.pth"):
        read_checkpoint(str(path))
    train_here(root, run, resume=True)
    assert_same_weights(uninterrupted(), run)


@row(
    "TR3",
    "NaN or infinity in a loss or gradient at a seeded step",
    target="stop before the update: weights unchanged bit for bit, images named",
    default=2,
    nightly=60,
)
def non_finite(seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = toy.ToyDetector()
    step, value = draw.randint(0, 5), draw.choice([float("nan"), float("inf"), -float("inf")])
    in_gradient = draw.random() < 0.5
    seen, before = itertools.count(), {}

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        if next(seen) < step:
            return tensor
        before.update(copy.deepcopy(model.state_dict()))
        return tensor * value

    if in_gradient:
        model.class_embed.weight.register_hook(spoil)
    else:
        losses = model.losses
        model.losses = lambda *args: {  # type: ignore[method-assign]
            name: spoil(loss) if name == "loss_bbox" else loss
            for name, loss in losses(*args).items()
        }
    trainer = Trainer(
        model, [toy.batch(4, s) for s in range(8)], torch.optim.AdamW(model.parameters(), lr=1e-2)
    )
    try:
        trainer.train(0, 8)
    except NonFiniteLossError as error:
        assert f"iteration {step}" in str(error) and "image" in str(error)
    else:
        raise AssertionError("the training went on")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@row(
    "TR5",
    "accumulation, clipping, mixed precision and moving average over a resume",
    target="4 x 1 = 1 x 4 to 1e-10; resumed = uninterrupted, bit for bit",
    default=1,
    nightly=20,
)
def accumulation(seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    large = toy.ToyDetector(dtype="float64", normalize="boxes")
    small = copy.deepcopy(large)
    whole = [toy.batch(8, seed * 10 + s) for s in range(4)]
    parts = [b[i : i + 2] for b in whole for i in range(0, 8, 2)]
    clip = {"max_norm": draw.choice([0.05, 1.0])}
    for model, batches, steps in ((large, whole, 1), (small, parts, 4)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        Trainer(model, batches, optimizer, grad_accum_steps=steps, clip_grad=clip).train(0, 4)
    for name, value in large.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=0, atol=1e-10)
    options = ["train.model_ema.enabled=True", f"train.model_ema.decay={draw.uniform(0.5, 0.99)}"]
    if draw.random() < 0.5:
        options += ["train.amp.enabled=True", "train.amp.dtype=float16"]
    root = data(folder)
    train_here(root, folder / "whole", *options)
    shutil.copytree(folder / "whole", folder / "parts")
    for name in ("model_final.pth", "model_best.pth", "model_0000023.pth"):
        (folder / "parts" / name).unlink()
    (folder / "parts" / "last_checkpoint").write_text("model_0000019.pth")
    train_here(root, folder / "parts", *options, resume=True)
    one, two = (read_checkpoint(str(folder / f / "model_final.pth")) for f in ("whole", "parts"))
    for part in ("model", "ema_state"):
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items())


@row(
    "TR6",
    "one of 2 to 4 processes fails: exception, memory, assertion, exit, kill, signal",
    target="all end within 10 s of an idle CPU, with its error once and its exit code",
    default=1,
    nightly=40,
)
def failing_process(seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    how = sorted(failing.OUTCOMES)[seed % len(failing.OUTCOMES)]
    assert how in failing.FAILURES
    processes = draw.choice([2, 2, 3, 4])
    failing.check_failure(folder, how, processes=processes, who=draw.randrange(processes))


@row(
    "TR7",
    "a soak of 10,000 steps of a tiny model",
    target="memory grows by less than 1 % after the first tenth, descriptors stay",
    default=0,
    nightly=1,
)
def soak(seed: int, folder: Path) -> int:
    root, measured = data(folder), []

    def measure(self: Trainer) -> None:
        if self.iter % 1000 == 999:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            measured.append((pages, len(os.listdir("/proc/self/fd"))))
        original(self)

    original = Trainer.run_step
    Trainer.run_step = measure  # type: ignore[method-assign]
    try:
        options = ["train.max_iter=10000", "train.eval_period=0", "train.log_period=100"]
        train_here(root, folder / "run", *options, "train.checkpointer.period=1000")
    finally:
        Trainer.run_step = original  # type: ignore[method-assign]
    (first, descriptors), (last, at_end) = measured[0], measured[-1]
    assert last <= first * 1.01, f"{first} pages after 1,000 steps, {last} after 10,000"
    assert descriptors == at_end
    return 10000


@row(
    "TR8",
    "a run's config.yaml, read again, gives the same run",
    target="bit for bit",
    default=1,
    nightly=20,
)
def config_round_trip(seed: int, folder: Path) -> None:
    draw = np.random.default_rng(seed)
    root = data(folder)
    cfg = toy.make_config(root, folder / "one")
    fill_defaults(cfg)
    options = [*OPTIONS, "train.max_iter=5", f"optimizer.lr={10 ** draw.uniform(-4, -2)!r}"]
    LazyConfig.apply_overrides(cfg, [*options, f"train.seed={int(draw.integers(1000))}"])
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    again = LazyConfig.load(str(folder / "config.yaml"))
    again.train.output_dir = again.dataloader.evaluator.output_dir = str(folder / "two")
    for config in (cfg, again):
        torch.manual_seed(config.train.seed)
        train(config, instantiate(config.model), resume=False)
    assert_same_weights(folder / "one", folder / "two")
