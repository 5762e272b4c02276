"""Accuracy of a detector made sparse without labels, by step, keep ratio and seed.

    python -m benchmarks.sparsification dino_shapes --seeds 0 1 2
    python -m benchmarks.sparsification deformable_detr_shapes    # and other detectors
    python -m benchmarks.sparsification --labels 600 --seeds 0 1 2    # and then train with labels
    python -m benchmarks.sparsification --splice     # recorded figures into docs/bypass.md

Every seed chooses other images and fits again; what is recorded is not run again. Rows:
random tokens (without and with the bypass), a score head alone, the bypass at the end of the
encoder only, the bypass in every layer (also with budgets by score mass, and with context), and
distillation of the dense detector's memory, or of memory and outputs. Detectors other than DINO
have one seed and fewer rows. With --labels, what was fitted (the bypass in every layer) is then
trained with labels, with and without its maps, and so is the dense detector: the same iterations,
seed and schedule.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from benchmarks.sparsification_steps import (
    CONTEXT,
    DISTILLED,
    LABELED,
    STEPS,
    Plan,
    build,
    changed,
    plan_of,
)
from benchmarks.sparsification_tables import tables
from tokendetr.analysis.flops import count_flops, mean_report
from tokendetr.analysis.inputs import load_measured_config, loaded_inputs
from tokendetr.analysis.recorded_rows import processor
from tokendetr.analysis.tables import splice
from tokendetr.config.zoo import get_config_file
from tokendetr.io.atomic import write_atomically
from tokendetr.predict import Predictor
from tokendetr.sparsification import (
    FitOptions,
    UnlabeledImages,
    fit,
)
from tokendetr.sparsification.job import SparsifyJob, evaluation_into, write_detector

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "sparsification" / "results.json"
PAGE = ROOT / "docs" / "bypass.md"
COUNTED_IMAGES = 10


def training_images(cfg: DictConfig) -> list[str]:
    """Return the files of the images that a config trains on."""
    records = instantiate(cfg.dataloader.train.dataset)
    return sorted({record["file_name"] for record in records})


def recorded(results: Path) -> dict[str, Any]:
    """Return the figures in a file, by config."""
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    return found


class Study:
    """The recorded figures, and what adds to them.

    Args:
        config: name of the dense detector's config.
        overrides: of it; its weights are those that come with it, unless they name others.
        images: folders; none: the images that the config trains on.
        folder: for the evaluator's files, and fits to go on from.
        plan: steps and keep ratios that are measured.
        results: file of the recorded figures.
    """

    def __init__(
        self,
        config: str,
        overrides: Sequence[str],
        images: Sequence[str],
        folder: Path,
        plan: Plan,
        results: Path = RESULTS,
    ) -> None:
        self.config, self.images, self.folder = config, images, folder.resolve()
        self.plan, self.results = plan, results
        self.overrides = list(overrides)
        self.cfg = load_measured_config(str(get_config_file(config)), overrides)
        self.cfg.dataloader.test.num_workers = 0
        self.weights = f"train.init_checkpoint={self.cfg.train.init_checkpoint}"
        self.entry = recorded(results).get(config, {"seeds": {}, "gflops": {}})
        options = ["--images", *images] if images else []
        command = ["python -m benchmarks.sparsification", config, *overrides, *options]
        self.entry["command"] = " ".join(command)
        self.entry["machine"] = processor()
        self.entry["torch"] = torch.__version__

    def save(self) -> None:
        """Write all figures."""
        self.entry["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        # Read again: the study of another detector may have written since.
        figures = {**recorded(self.results), self.config: self.entry}
        write_atomically(str(self.results), (json.dumps(figures, indent=1) + "\n").encode())

    def ap(self, detector: nn.Module) -> float:
        """Return the AP on the config's test set."""
        torch.manual_seed(0)  # of tokens chosen at random
        evaluation = evaluation_into(self.folder / self.config, self.cfg, detector.eval())
        return round(evaluation.box_ap(), 2)

    def run(self, seed: int, options: FitOptions, labels: int = 0) -> None:
        """Fit, distill, train with labels and evaluate one seed, as far as that is not recorded.

        Args:
            seed: of images and fits.
            options: of the fit without distillation.
            labels: iterations with labels; 0: none.
        """
        predictor, student = build(self.cfg, "mass")
        own = self.entry["seeds"].setdefault(str(seed), {})
        if "dense" not in self.entry:
            self.entry["dense"] = self.ap(predictor.model)
            self.count(predictor.model, student)
        sources = self.images or training_images(self.cfg)
        images = UnlabeledImages.from_folders(sources, predictor, seed=seed)
        if all(step in own for step in (*self.plan.steps, *(LABELED if labels else ()))):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(seed, "every")
        with self.timed(own, 0, file):
            result = fit(predictor.model, student, images, options, state_file=file)
        own.setdefault("curve 0", result.curve)
        if labels:
            with changed(student, "labels"):  # without a budget
                self.train_on(seed, student, labels)
        dense, steps = predictor.model, set(self.plan.steps)
        self.measure(seed, student, steps - {*DISTILLED, *CONTEXT})
        self.distill(seed, dense, student, images, options, steps - {*CONTEXT})
        if not all(step in own for step in steps & {*CONTEXT}):
            _, other = build(self.cfg, "mass", context=True)
            other.load_state_dict(student.state_dict(), strict=False)
            # Scores do not depend on the maps.
            maps = replace(options, score_iterations=0)
            result = fit(dense, other, images, maps, state_file=self._file(seed, "context"))
            own.setdefault("curve with context", result.curve)
            self.measure(seed, other, steps & {"context"})
            self.distill(seed, dense, other, images, options, steps & {*CONTEXT})

    def _file(self, seed: int, step: str) -> Path:
        """Return where a fit is kept, from which a later call, which may add steps, goes on."""
        return self.folder / f"{self.config}_{seed}_{step.replace(', ', '_')}.pth"

    def distill(
        self,
        seed: int,
        dense: nn.Module,
        student: nn.Module,
        images: UnlabeledImages,
        options: FitOptions,
        steps: Collection[str],
    ) -> None:
        """Distill and evaluate what was fitted, as far as that is not recorded."""
        own = self.entry["seeds"][str(seed)]
        fitted = copy.deepcopy(student.state_dict())
        for number, (step, (targets, iterations)) in enumerate(DISTILLED.items(), start=1):
            if step in own or step not in steps:
                continue
            student.load_state_dict(fitted)
            own[f"iterations {number}"] = iterations
            file = self._file(seed, step)
            with self.timed(own, number, file), changed(student, step):  # without a budget
                distilled = replace(
                    options, score_iterations=0, distill_iterations=iterations, targets=targets
                )
                fit(dense, student, images, distilled, state_file=file)
            self.measure(seed, student, {step})
        student.load_state_dict(fitted)

    @contextmanager
    def timed(self, own: dict[str, Any], number: int, file: Path) -> Iterator[None]:
        """Record the time of a fit, unless it is recorded or goes on from its file."""
        began, started, busy = file.exists(), time.perf_counter(), time.process_time()
        yield
        if began:
            return
        own.setdefault(f"seconds {number}", round(time.perf_counter() - started, 1))
        own.setdefault(f"processor seconds {number}", round(time.process_time() - busy, 1))

    def measure(self, seed: int, student: nn.Module, steps: Collection[str]) -> None:
        """Evaluate the steps that are not recorded."""
        own = self.entry["seeds"][str(seed)]
        for step in STEPS:
            if step not in steps or step in own:
                continue
            with changed(student, step) as sparsifier:
                found = {}
                for ratio in self.plan.ratios_of(step):
                    sparsifier.set_keep_ratio(ratio)
                    found[str(ratio)] = self.ap(student)
            own[step] = found
            print(seed, step, found, flush=True)
            self.save()

    def train_on(self, seed: int, student: nn.Module, iterations: int) -> None:
        """Train what was fitted, and the dense detector, with labels; evaluate what is trained."""
        own = self.entry["seeds"][str(seed)]
        for step in LABELED:
            if step in own:
                continue
            folder = self.folder / f"labels_{seed}" / step.replace(", ", "_").replace(" ", "_")
            job = SparsifyJob(
                self.config,
                self.images,
                folder,
                [o for o in self.overrides if "=" in o],
                context=False,
            )
            folder.mkdir(parents=True, exist_ok=True)
            write_detector(job, student)
            file, changes = str(folder / "config.py"), []
            if step == "labels, dense":
                file, changes = str(get_config_file(self.config)), [*self.overrides, self.weights]
            elif step == "labels, no bypass":
                changes = [f"{_SPARSIFIER}.bypass=null", "train.init_checkpoint_strict=False"]
            run_training(file, [*changes, *_schedule(seed, iterations, folder)])
            weights = f"train.init_checkpoint={folder / 'run' / 'model_final.pth'}"
            trained = Predictor.from_config(load_measured_config(file, [*changes, weights])).model
            own[step] = {}
            for ratio in (None,) if step == "labels, dense" else self.plan.ratios:
                if ratio is not None:
                    trained.transformer.encoder.sparsifier.set_keep_ratio(ratio)  # type: ignore
                own[step][str(ratio)] = self.ap(trained)
            own["iterations with labels"] = iterations
            print(seed, step, own[step], flush=True)
            self.save()

    def count(self, dense: nn.Module, student: nn.Module) -> None:
        """Count the operations at each ratio: total and encoder, in 10^9."""
        records = list(loaded_inputs(self.cfg, COUNTED_IMAGES))
        sparsifier: Any = student.transformer.encoder.sparsifier  # type: ignore[union-attr]
        for ratio in (None, *self.plan.ratios):
            if ratio is not None:
                sparsifier.set_keep_ratio(ratio)
            detector = dense if ratio is None else student
            report = mean_report([count_flops(detector, r, arithmetic=False) for r in records])
            self.entry["gflops"][str(ratio)] = [
                round(report.total / 1e9, 4),
                round(report.by_part["encoder"] / 1e9, 4),
            ]


_SPARSIFIER = "model.transformer.encoder.sparsifier"


def _schedule(seed: int, iterations: int, folder: Path) -> list[str]:
    """Return the overrides that all trainings with labels have in common."""
    return [
        f"train.max_iter={iterations}",
        f"train.eval_period={iterations + 1}",
        f"train.checkpointer.period={iterations + 1}",
        f"train.seed={seed}",
        f"train.output_dir={folder / 'run'}",
        f"dataloader.evaluator.output_dir={folder / 'run'}",
        "dataloader.train.total_batch_size=8",
        "optimizer.lr=2e-4",
    ]


def run_training(file: str, overrides: Sequence[str]) -> None:
    """Train a config in a process of its own; an interrupted training goes on.

    Raises:
        RuntimeError: where it fails.
    """
    program = [sys.executable, "-m", "tokendetr.cli.train_net", "--config-file", file, "--resume"]
    done = subprocess.run([*program, *overrides], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"training {file} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", nargs="?", default="dino_shapes")
    parser.add_argument("overrides", nargs="*", help="config overrides, as KEY=VALUE")
    parser.add_argument(
        "--images", nargs="+", default=[], help="folders (default: what the config trains on)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="(default: of the config's plan)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="(default: of the config's plan)")
    parser.add_argument(
        "--labels", type=int, default=0, metavar="ITERATIONS", help="also train with labels"
    )
    parser.add_argument("--folder", type=Path, default=Path("output/sparsification"))
    parser.add_argument("--splice", action="store_true", help="only write docs/bypass.md")
    args = parser.parse_intermixed_args(arguments)
    if not args.splice:
        plan = plan_of(args.config)
        plan = Plan(args.seeds or plan.seeds, args.steps or plan.steps, plan.ratios)
        study = Study(args.config, args.overrides, args.images, args.folder, plan)
        for seed in plan.seeds:
            study.run(seed, FitOptions(seed=seed), args.labels)
    for table in tables(recorded(RESULTS)):
        sys.stdout.write(table.markdown() + "\n")
        splice(PAGE, table)


if __name__ == "__main__":
    main()
