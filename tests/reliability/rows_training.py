"""Rows of training: non-finite losses, accumulation, several processes, signals, a soak."""

import copy
import itertools
import os
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate

from tests.reliability.campaign import row
from tests.reliability.training_runs import OPTIONS, assert_same_weights, train_here, write_data
from tests.train import failing, toy
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.config.load import fill_defaults
from tokendetr.errors import NonFiniteLossError
from tokendetr.train.run import train
from tokendetr.train.trainer import Trainer


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
    root = write_data(folder)
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
    root, measured = write_data(folder), []

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
    root = write_data(folder)
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
