"""Measure time and memory of `tokendetr sparsify`'s fit for a full-size detector.

    python -m benchmarks.sparsification_cost                    # DINO, ResNet-50, 800 x 1216 pixels
    python -m benchmarks.sparsification_cost --record           # and into docs/bypass.md

A few images of noise are fitted to with random weights: time and memory of an image depend on
neither. Stages of the fit cost the same for every image, so the table gives them per image and adds
up a fit of the default length.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.sparsification_steps import build
from tokendetr.analysis.inputs import load_measured_config
from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.recorded_tables import RecordedTables, write_recorded
from tokendetr.analysis.tables import Table, splice
from tokendetr.analysis.timing import peak_memory, reset_peak_memory, timed
from tokendetr.config.zoo import get_config_file
from tokendetr.sparsification import FitOptions, UnlabeledImages, fit

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "records" / "sparsification_cost.json"
SIZE = (800, 1216)
MAP_IMAGES = 128
"""Images that the maps of the recorded fits converged with (docs/sparsification)."""
CPU = torch.device("cpu")


class Clock:
    """Collects the seconds between two steps of each stage of a fit."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._stage, self._last = "", 0.0

    def note(self, stage: str, done: int, total: int, loss: float) -> None:
        """Take a step's time; a stage's first step, which includes its start, is left out."""
        now = time.perf_counter()
        steps = self.seconds.setdefault(stage, [])
        if stage == self._stage:
            steps.append(now - self._last)
        self._stage, self._last = stage, now


def measure(config: str, images: int, batch_size: int) -> Table:
    """Fit to a few images, and return the table.

    Args:
        config: name of the dense detector's config.
        images: images that each stage is timed on, a multiple of the batch size.
        batch_size: images per batch.
    """
    cfg = load_measured_config(str(get_config_file(config)), ["train.device=cpu"])
    cfg.train.init_checkpoint = ""
    predictor, student = build(cfg, context=True)
    batches = images // batch_size + 1  # the first one warms up
    options = FitOptions(
        score_iterations=batches,
        distill_iterations=batches,
        targets="memory",
        max_images=batches * batch_size,
        tolerance=1e-6,
    )
    noise = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(batches * batch_size + 2):
            pixels = noise.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{number:03d}.png")
        found = UnlabeledImages.from_folders([folder], predictor, batch_size=batch_size)
        record = found.read(found.fitted[0])
        shape = tuple(record["image"].shape[-2:])
        if shape != SIZE:
            raise ValueError(f"{config} resizes images of {SIZE} to {shape}")
        with torch.no_grad():
            predictor.model([record])
            reset_peak_memory(CPU)
            dense = timed(lambda: predictor.model([record]), CPU)
            alone = peak_memory(CPU)
        reset_peak_memory(CPU)
        clock = Clock()
        fit(predictor.model, student, found, options, progress=clock.note)
        peak = peak_memory(CPU)
    step = {stage: statistics.median(steps) for stage, steps in clock.seconds.items()}
    return _table(config, step, batch_size, dense, alone, peak)


def _table(
    config: str, step: dict[str, float], batch_size: int, dense: float, alone: int, peak: int
) -> Table:
    image = {stage: seconds / batch_size for stage, seconds in step.items()}
    scored = FitOptions().score_iterations * 8
    rows = [
        ["the dense detector, evaluated", f"{dense:.2f}", "", f"{alone / 2**30:.1f}"],
        ["maps", f"{image['maps']:.2f}", _minutes(MAP_IMAGES * image["maps"]), ""],
        ["scores", f"{image['scores']:.2f}", _minutes(scored * image["scores"]), ""],
        [
            "distillation of the memory (optional)",
            f"{image['distillation']:.2f}",
            _minutes(400 * 8 * image["distillation"]),
            "",
        ],
        ["the fit", "", "", f"{peak / 2**30:.1f}"],
    ]
    return Table(
        name="sparsification_cost",
        title=f"Cost of the fit: `{config}`, images of {SIZE[0]} x {SIZE[1]} pixels",
        columns=("", "seconds an image", "minutes of a whole stage", "process's peak (GiB)"),
        rows=rows,
        notes=(
            f"Whole stages are computed: maps of {MAP_IMAGES} images, scores of "
            f"{scored} and distillation of {400 * 8} images; fewer images or a GPU take less.",
            f"Random weights, noise, batches of {batch_size}, float32. Memory grows with the "
            "batch, not with the number of images.",
        ),
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="dino_r50_4scale_12ep", help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=4, help="of each stage (default 4)")
    parser.add_argument("--batch-size", type=int, default=2, help="(default 2)")
    parser.add_argument("--record", action="store_true", help="also into docs/bypass.md")
    args = parser.parse_args(arguments)
    if args.batch_size < 1 or args.images < args.batch_size:
        parser.error("--batch-size must be at least 1, and --images at least the batch size")
    table = measure(args.config, args.images, args.batch_size)
    sys.stdout.write(table.markdown())
    if args.record:
        recorded = RecordedTables(
            page="docs/bypass.md",
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            machine=f"{machine()}, {torch.get_num_threads()} threads",
            commands=[" ".join(["python -m benchmarks.sparsification_cost", *sys.argv[1:]])],
            tables=[table],
        )
        write_recorded(RECORD, recorded)
        for shown in recorded.shown():
            splice(ROOT / recorded.page, shown)


if __name__ == "__main__":
    main()
