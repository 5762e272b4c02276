"""The project in one run (``make demo``): a dense DINO beside its Dynamic-DINO twin, on the CPU.

Draws the shapes data set, trains Dynamic-DINO for a short while (killed with SIGKILL halfway, then
resumed), evaluates the shipped detectors and the one just trained, measures operations and time,
and writes pictures. Everything lands in output/demo/; about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from tokendetr.analysis.flops import count_flops, mean_report
from tokendetr.config.load import load_config
from tokendetr.data.shapes import ensure_shapes
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.evaluation.run import Evaluation
from tokendetr.predict import Predictor, dataset_metadata, read_rgb
from tokendetr.visualization.token_pictures import draw_tokens

DENSE = "dino_shapes"
DYNAMIC = "dynamic_dino_shapes"
METRICS = ("AP", "AP50", "APs", "APm", "APl")
# Pictures of the validation set with objects of several sizes.
PICTURES = (0, 4, 9, 14)


@dataclass
class Candidate:
    """One row of the table.

    Attributes:
        title: how the row is called.
        config: a config's name.
        weights: checkpoint; None takes the one that comes with the config.
        metrics: box AP and its kin, 0 to 100.
        gflops, encoder_gflops: of one image, multiply-add = 1, mean over validation images.
        milliseconds: per image: median over validation images.
    """

    title: str
    config: str
    weights: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    gflops: float = 0.0
    encoder_gflops: float = 0.0
    milliseconds: float = 0.0
    predictor: Predictor | None = None

    def load(self) -> tuple[DictConfig, Predictor]:
        """The config, and the detector with its weights."""
        cfg = load_config(self.config, trained=True)
        if self.weights is not None:
            cfg.train.init_checkpoint = self.weights
        if self.predictor is None:
            self.predictor = Predictor.from_config(cfg)
        return cfg, self.predictor


class Stages:
    """Numbered headings with the time since the start."""

    def __init__(self, total: int) -> None:
        self.total, self.number, self.start = total, 0, time.perf_counter()

    def begin(self, title: str) -> None:
        """Print the next heading."""
        self.number += 1
        passed = time.perf_counter() - self.start
        print(f"\n[{self.number}/{self.total}] {title}   ({passed:.0f} s so far)", flush=True)


# --------------------------------------------------------------------------------- training


def training_command(folder: Path, iterations: int, *extra: str) -> list[str]:
    """Command of a short fine-tuning of Dynamic-DINO from the dense weights."""
    return [
        sys.executable,
        "-m",
        "tokendetr.cli.train_net",
        "--config-file",
        DYNAMIC,
        *extra,
        f"train.output_dir={folder}",
        f"train.max_iter={iterations}",
        f"train.checkpointer.period={iterations // 4}",
        f"train.eval_period={iterations}",
        "train.log_period=5",
    ]


def train_with_a_crash(folder: Path, iterations: int) -> dict[str, float]:
    """Train, kill the process with SIGKILL after its second checkpoint, resume to the end.

    Returns:
        The metrics of the evaluation at the end.

    Raises:
        RuntimeError: a run failed or did not resume; the message names its log.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console = folder / "console.txt"
    checkpoint = folder / f"model_{iterations // 4 * 2 - 1:07d}.pth"

    def is_due() -> bool:
        return checkpoint.exists() and _last_iteration(folder) > iterations // 2

    _run(training_command(folder, iterations), console, iterations, kill_when=is_due)
    print(f"  killed with SIGKILL after iteration {_last_iteration(folder)}; resuming", flush=True)
    _run(training_command(folder, iterations, "--resume"), console, iterations)
    if "Resuming from" not in console.read_text():
        raise RuntimeError(f"the training did not resume; see {console}")
    evaluated = [record for record in _records(folder) if "bbox/AP" in record]
    if not evaluated:
        raise RuntimeError(f"the training wrote no evaluation; see {console}")
    return {name: float(evaluated[-1][f"bbox/{name}"]) for name in METRICS}


def _run(
    command: list[str],
    console: Path,
    iterations: int,
    kill_when: Callable[[], bool] | None = None,
) -> None:
    """Run a training with a progress bar; ``kill_when`` says when to kill it."""
    print("  " + " ".join(command).replace(sys.executable, "python"), flush=True)
    folder = console.parent
    with console.open("a") as log, tqdm(total=iterations, unit="iteration", leave=False) as bar:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None:
                time.sleep(0.3)
                if (done := min(_last_iteration(folder) + 1, iterations) - bar.n) > 0:
                    bar.update(done)
                if kill_when is not None and kill_when():
                    break
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if kill_when is None and process.returncode != 0:
        tail = "\n".join(console.read_text().splitlines()[-15:])
        raise RuntimeError(f"training failed (exit {process.returncode}); see {console}:\n{tail}")


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.json"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _last_iteration(folder: Path) -> int:
    records = _records(folder)
    return int(records[-1]["iteration"]) if records else -1


# --------------------------------------------------------------------------------- measuring


def evaluate(candidate: Candidate, folder: Path, images: int) -> None:
    """COCO metrics on the validation set; what the evaluator prints goes to a file."""
    cfg, predictor = candidate.load()
    cfg.dataloader.evaluator.output_dir = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "printed.txt").open("w") as printed,
        contextlib.redirect_stdout(printed),
        tqdm(total=images, unit="image", desc=candidate.title) as bar,
    ):

        def count(*_: Any) -> None:  # a hook that returned something would replace the output
            bar.update()

        counter = predictor.model.register_forward_hook(count)
        results = Evaluation(cfg, predictor.model)()
        counter.remove()
    candidate.metrics = {name: float(results["bbox"][name]) for name in METRICS}


def measure(candidates: list[Candidate], images: list[np.ndarray], timed: int) -> None:
    """Operations and time per image; the detectors take turns, so all meet the same machine."""
    predictors = [candidate.load()[1] for candidate in candidates]
    for candidate, predictor in zip(candidates, predictors, strict=True):
        reports = [count_flops(predictor.model, [predictor.inputs(image)]) for image in images[:10]]
        report = mean_report(reports)
        candidate.gflops = report.total / 1e9
        candidate.encoder_gflops = report.by_part["encoder"] / 1e9
    seconds: list[list[float]] = [[] for _ in candidates]
    for repeat in tqdm(range(timed + 3), unit="image", desc="timing"):
        for times, predictor in zip(seconds, predictors, strict=True):
            start = time.perf_counter()
            predictor(images[repeat % len(images)])
            if repeat >= 3:  # the first ones warm up
                times.append(time.perf_counter() - start)
    for candidate, times in zip(candidates, seconds, strict=True):
        candidate.milliseconds = 1000 * float(np.median(times))


# --------------------------------------------------------------------------------- pictures


def write_pictures(dense: Candidate, dynamic: Candidate, files: list[Path], folder: Path) -> None:
    """Detections of both detectors side by side, and what the dynamic one did with its tokens."""
    from detectron2.utils.visualizer import Visualizer

    folder.mkdir(parents=True, exist_ok=True)
    cfg, dynamic_predictor = dynamic.load()
    metadata = dataset_metadata(cfg)
    for path in files:
        image_HWC = read_rgb(path)
        drawn = []
        with record_tokens() as trace:
            found = dynamic_predictor(image_HWC)
        for instances in (dense.load()[1](image_HWC), found):
            canvas = Visualizer(image_HWC, metadata, scale=2.5)
            shown = instances[instances.scores >= 0.3]
            drawn.append(canvas.draw_instance_predictions(shown).get_image())
        side_by_side = np.concatenate(drawn, axis=1)
        Image.fromarray(side_by_side).save(folder / f"{path.stem}_dense_dynamic.png")
        sheet = draw_tokens(image_HWC, trace.forwards[-1])
        sheet.save(folder / f"{path.stem}_tokens.png")


def table(candidates: list[Candidate]) -> str:
    """The table that the demo ends with."""
    header = ["", *METRICS, "GFLOPs", "encoder GFLOPs", "ms/image"]
    rows = [
        [
            candidate.title,
            *(f"{candidate.metrics[name]:.1f}" for name in METRICS),
            f"{candidate.gflops:.3f}",
            f"{candidate.encoder_gflops:.3f}",
            f"{candidate.milliseconds:.1f}",
        ]
        for candidate in candidates
    ]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder to write")
    parser.add_argument("--iterations", type=int, default=80, help="of the short training")
    parser.add_argument("--timed-images", type=int, default=60, help="images per detector")
    args = parser.parse_args(arguments)
    if args.iterations < 16:
        parser.error("--iterations must be at least 16: the training is killed and resumed")
    return args


def run(args: argparse.Namespace) -> None:
    """Run all stages and print the table."""
    output: Path = args.output
    output.mkdir(parents=True, exist_ok=True)
    setup_logger(str(output / "demo.txt"), name="detectron2", configure_stdout=False)
    logging.getLogger("tokendetr").setLevel(logging.WARNING)
    stages = Stages(5)
    stages.begin("The shapes data set (drawn once)")
    root = ensure_shapes()
    files = sorted((root / "val").glob("*.jpg"))

    stages.begin("Training Dynamic-DINO for a moment; killed halfway, then resumed")
    trained = Candidate(
        f"Dynamic-DINO, {args.iterations} iterations just now",
        DYNAMIC,
        str(output / "train" / "model_final.pth"),
    )
    trained.metrics = train_with_a_crash(output / "train", args.iterations)

    stages.begin("Evaluating the shipped detectors on shapes_val")
    dense = Candidate("DINO (dense)", DENSE)
    dynamic = Candidate("Dynamic-DINO", DYNAMIC)
    for candidate, name in ((dense, "dense"), (dynamic, "dynamic")):
        evaluate(candidate, output / "evaluation" / name, len(files))

    stages.begin("Counting operations, measuring time")
    candidates = [dense, dynamic, trained]
    measure(candidates, [read_rgb(path) for path in files[:50]], args.timed_images)

    stages.begin("Pictures")
    write_pictures(dense, dynamic, [files[index] for index in PICTURES], output / "pictures")
    text = table(candidates)
    (output / "table.md").write_text(text + "\n")
    print(f"\n{text}\n")
    print(f"shapes_val, {len(files)} images; CPU threads: {torch.get_num_threads()}; GFLOPs count")
    print("a multiply-add as one. Pictures (detections: dense left, dynamic right; tokens):")
    for path in sorted((output / "pictures").iterdir()):
        print(f"  {path}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    try:
        run(args)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
