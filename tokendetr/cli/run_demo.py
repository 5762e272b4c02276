"""Show the project in one run (``make demo``): what a sparse encoder gains and costs on a CPU.

Examples:
    tokendetr demo --output output/demo
    python tools/run_demo.py --write

Generates the shapes data set, trains Dynamic-DINO for a short time (killed with SIGKILL halfway,
then resumed), makes the dense DINO sparse without labels, evaluates these detectors and the shipped
ones, counts operations, measures time on small images and at COCO's size, and writes drawings and
an HTML report to output/demo/. Takes a few minutes on two idle cores. ``--write`` (in a checkout)
also records the table in docs/records/demo.json and puts it into docs/start.md.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.logger import setup_logger
from PIL import Image

from tokendetr.analysis.flops import count_flops, mean_report, synthetic_inputs
from tokendetr.analysis.inputs import build_measured_model, load_measured_config
from tokendetr.analysis.machine_load import machine_load
from tokendetr.analysis.timing import timed
from tokendetr.cli.argument_types import non_negative_int, positive_int
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.demo_table import (
    LARGE_PX,
    LARGE_RUNS,
    METRICS,
    Candidate,
    record_table,
    table,
)
from tokendetr.cli.demo_training import train_with_a_crash
from tokendetr.cli.program import program
from tokendetr.config.files import PROJECTS_DIR, checkpoint_file
from tokendetr.data.shapes import ensure_shapes
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.evaluation.run import Evaluation
from tokendetr.io.progress import Progress
from tokendetr.predict import dataset_metadata, read_rgb
from tokendetr.report import write_report
from tokendetr.sparsification import FitOptions, SparsifyJob, run_job
from tokendetr.visualization.boxes import draw_boxes, found_boxes, legible_scale
from tokendetr.visualization.token_overview import draw_overview
from tokendetr.visualization.tokens import draw_tokens

DENSE = "dino_shapes"
DYNAMIC = "dynamic_dino_shapes"
# Of the validation set, with objects of several sizes.
DRAWN_IMAGES = (0, 4, 9, 14)
REPORT_IMAGES = 30


class Stages:
    """Print numbered headings with the time since the start."""

    def __init__(self, total: int) -> None:
        self.total, self.number, self.start = total, 0, time.perf_counter()

    def begin(self, title: str) -> None:
        """Print the next heading, and a note if the machine is busy."""
        self.number += 1
        passed = time.perf_counter() - self.start
        print(f"\n[{self.number}/{self.total}] {title}   ({passed:.0f} s so far)", flush=True)
        load = machine_load(own=os.cpu_count() or 1)
        if load.is_busy:
            print(f"  the machine is busy: {load.text}; this takes longer")


# --------------------------------------------------------------------------------- measuring


def make_sparse(folder: Path, images: Path, iterations: int) -> None:
    """Make the dense detector sparse with unlabeled images, without resuming an earlier run."""
    shutil.rmtree(folder, ignore_errors=True)
    with Progress(unit="batch") as bar:

        def show(stage: str, done: int, total: int, _: float) -> None:
            bar.set_description(stage)
            bar.total, bar.n = total, done
            bar.refresh()

        job = SparsifyJob(
            config=DENSE,
            overrides=[f"train.init_checkpoint={checkpoint_file(DENSE)}"],
            images=[str(images)],
            output_dir=folder,
            keep_ratio=0.3,
            options=FitOptions(score_iterations=iterations, max_images=64),
        )
        run_job(job, progress=show)


def measure_large(candidates: list[Candidate]) -> None:
    """Time full-size networks with random weights on one image of COCO's size.

    They take turns, so that a change of the machine's speed affects all alike. The fastest run of
    each counts: the first one also takes its memory from the system.
    """
    timed_ones = [(each, _large_network(each.large)) for each in candidates if each.large]
    images, cpu = synthetic_inputs(*LARGE_PX), torch.device("cpu")
    seconds: list[list[float]] = [[] for _ in timed_ones]
    with torch.no_grad():
        for _ in range(LARGE_RUNS):
            for times, (_, model) in zip(seconds, timed_ones, strict=True):
                times.append(timed(partial(model, images), cpu))
    for times, (candidate, _) in zip(seconds, timed_ones, strict=True):
        candidate.large_milliseconds = 1000 * min(times)
        print(f"  {candidate.large}: {candidate.large_milliseconds:.0f} ms", flush=True)


def _large_network(config: str) -> torch.nn.Module:
    """Build a network with random weights that has run once on a small image."""
    model = build_measured_model(load_measured_config(config, ["train.device=cpu"]), []).eval()
    with torch.no_grad():
        model(synthetic_inputs(256, 256))  # warm-up: allocates memory, folds weights
    return model


def evaluate(candidate: Candidate, folder: Path, images: int) -> None:
    """Evaluate on the validation set; the evaluator's output is redirected to a file."""
    cfg, predictor = candidate.load()
    cfg.dataloader.evaluator.output_dir = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "printed.txt").open("w") as printed,
        contextlib.redirect_stdout(printed),
        Progress(total=images, unit="image", desc=candidate.title) as bar,
    ):

        def count(*_: Any) -> None:  # returns None, since a hook's result replaces the output
            bar.update()

        counter = predictor.model.register_forward_hook(count)
        results = Evaluation(cfg, predictor.model)()
        counter.remove()
    candidate.metrics = {name: float(results["bbox"][name]) for name in METRICS}


def measure(candidates: list[Candidate], images: list[np.ndarray], timed: int) -> None:
    """Measure operations and time per image, in turns, so that other load affects all alike."""
    predictors = [candidate.load()[1] for candidate in candidates]
    for candidate, predictor in zip(candidates, predictors, strict=True):
        reports = [count_flops(predictor.model, [predictor.inputs(image)]) for image in images[:10]]
        report = mean_report(reports)
        candidate.gflops = report.total / 1e9
        candidate.encoder_gflops = report.by_part["encoder"] / 1e9
    seconds: list[list[float]] = [[] for _ in candidates]
    for repeat in Progress(range(timed + 3), unit="image", desc="timing"):
        for times, predictor in zip(seconds, predictors, strict=True):
            start = time.perf_counter()
            predictor(images[repeat % len(images)])
            if repeat >= 3:  # the first ones are warm-ups
                times.append(time.perf_counter() - start)
    for candidate, times in zip(candidates, seconds, strict=True):
        candidate.milliseconds = 1000 * float(np.median(times))


# ----------------------------------------------------------------------------------- drawing


def write_images(dense: Candidate, dynamic: Candidate, files: list[Path], folder: Path) -> None:
    """Draw the detections of both detectors side by side, and the dynamic one's tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg, dynamic_predictor = dynamic.load()
    names = dataset_metadata(cfg).get("thing_classes", None)
    for path in files:
        image_HWC = read_rgb(path)
        with record_tokens() as trace:
            found = dynamic_predictor(image_HWC)
        boxes = [
            found_boxes(instances[instances.scores >= 0.3], names)
            for instances in (dense.load()[1](image_HWC), found)
        ]
        scale = legible_scale(image_HWC)
        drawn = [np.asarray(draw_boxes(image_HWC, each, scale=scale)) for each in boxes]
        side_by_side = np.concatenate(drawn, axis=1)
        Image.fromarray(side_by_side).save(folder / f"{path.stem}_dense_dynamic.png")
        overview = draw_overview(image_HWC, trace.forwards[-1], boxes[1])
        overview.save(folder / f"{path.stem}_overview.png")
        sheet = draw_tokens(image_HWC, trace.forwards[-1], boxes=boxes[1])
        sheet.save(folder / f"{path.stem}_tokens.png")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder to write")
    parser.add_argument("--iterations", type=positive_int, default=80, help="of the training (80)")
    parser.add_argument(
        "--score-iterations", type=non_negative_int, default=40, help="of the fit without labels"
    )
    parser.add_argument("--timed-images", type=positive_int, default=60, help="images per detector")
    parser.add_argument(
        "--write", action="store_true", help="record the table and put it into docs/start.md"
    )
    args = parser.parse_args(arguments)
    if args.write and not (PROJECTS_DIR.parent / "docs" / "start.md").is_file():
        parser.error("--write needs a checkout of the sources, not a wheel")
    if args.iterations < 16:
        parser.error("--iterations must be at least 16: the training is killed and resumed")
    return args


# Over 60 lines: the steps of the demonstration, in order.
def run(args: argparse.Namespace) -> None:
    """Run all stages and print the table."""
    output: Path = args.output
    output.mkdir(parents=True, exist_ok=True)
    setup_logger(str(output / "demo.txt"), name="detectron2", configure_stdout=False)
    logging.getLogger("tokendetr").setLevel(logging.WARNING)
    stages = Stages(8)
    stages.begin("The shapes data set (drawn once)")
    root = ensure_shapes()
    files = sorted((root / "val").glob("*.jpg"))

    stages.begin("Training Dynamic-DINO for a moment; killed halfway, then resumed")
    trained = Candidate(
        f"Dynamic-DINO, trained here for {args.iterations} iterations",
        DYNAMIC,
        str(output / "train" / "model_final.pth"),
    )
    record = train_with_a_crash(DYNAMIC, output / "train", args.iterations)
    trained.metrics = {name: float(record[f"bbox/{name}"]) for name in METRICS}

    stages.begin("Making the dense DINO sparse, without labels")
    make_sparse(output / "sparse", root / "train", args.score_iterations)
    fitted = Candidate(
        "DINO, sparsified here without labels (keep 0.3)",
        str(output / "sparse" / "config.py"),
        str(output / "sparse" / "model.pth"),
        large="sparse_dino_r50_4scale_12ep_bypass",
    )

    stages.begin("Evaluating the detectors on shapes_val")
    dense = Candidate("DINO (dense)", DENSE, large="dino_r50_4scale_12ep")
    dynamic = Candidate("Dynamic-DINO", DYNAMIC, large="dynamic_dino_r50_4scale_12ep")
    for candidate, name in ((dense, "dense"), (dynamic, "dynamic"), (fitted, "sparse")):
        evaluate(candidate, output / "evaluation" / name, len(files))

    stages.begin("Counting operations, measuring time")
    candidates = [dense, dynamic, trained, fitted]
    measure(candidates, [read_rgb(path) for path in files[:50]], args.timed_images)

    stages.begin(
        f"Time of R50 networks at {LARGE_PX[0]} x {LARGE_PX[1]}, the fastest of {LARGE_RUNS} runs"
    )
    measure_large(candidates)

    stages.begin("Drawing detections and tokens")
    write_images(dense, dynamic, [files[index] for index in DRAWN_IMAGES], output / "images")

    stages.begin("One page for a browser")
    page = write_report(
        [DENSE, DYNAMIC, str(output / "train")],
        output / "report.html",
        limit=REPORT_IMAGES,
        worst=2,
        random=2,
        token_images=2,
    )
    made = table(candidates, len(files))
    record_table(made, output, args.write)
    print(f"\n{made.markdown()}")
    print("Images (detections: dense left, Dynamic-DINO right; overviews; tokens by level):")
    for path in sorted((output / "images").iterdir()):
        print(f"  {path}")
    print(f"All of it on one page, for a browser: {page}")


@program(RuntimeError, ValueError)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    run(parse_arguments(arguments))


if __name__ == "__main__":
    main()
