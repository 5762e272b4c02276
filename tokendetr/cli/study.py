"""Train, test and compare detectors with equal budgets, several seeds and intervals.

Examples:
    python tools/study.py dino --list
    python tools/study.py dino --only shapes_methods
    python tools/study.py dino --only shapes_methods --rows dense sparse_detr --seeds 0
    python tools/study.py dino --table --write       # write the results so far into the docs

Results are recorded in docs/evidence/NAME.json and not measured again; an interrupted training
continues. Every step is a command of the project, with its output in the row's folder.

Shapes: R replicate, I image of the test set.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tokendetr.analysis.comparison import AREAS, METRICS, REPLICATES, Comparison, Contestant
from tokendetr.analysis.comparison_chart import draw_comparison
from tokendetr.analysis.flops import count_flops, mean_report
from tokendetr.analysis.inputs import build_measured_model, load_measured_config, loaded_inputs
from tokendetr.analysis.recorded_rows import processor
from tokendetr.analysis.tables import splice
from tokendetr.cli.argument_types import output_folder
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.cli.project_studies import from_project
from tokendetr.config import zoo
from tokendetr.config.files import PROJECTS_DIR
from tokendetr.errors import ConfigError
from tokendetr.evaluation.bootstrap import draw_images, match_images
from tokendetr.io.atomic import write_atomically
from tokendetr.io.json_files import read_json
from tokendetr.sparsification.job import OUTPUTS

RECORDS = PROJECTS_DIR.parent / "docs" / "evidence"
COUNTED_IMAGES = 20


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("project", help="folder under projects/ that has a comparisons.py")
    parser.add_argument("--list", action="store_true", help="comparisons and their rows")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these comparisons (default all)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these rows (default all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds (default all)")
    parser.add_argument(
        "--output",
        type=output_folder,
        default=Path("output/study"),
        metavar="DIR",
        help="folder of the runs (default output/study)",
    )
    parser.add_argument(
        "--records",
        type=Path,
        default=RECORDS,
        metavar="DIR",
        help="folder of the result files (default docs/evidence)",
    )
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument(
        "--write",
        action="store_true",
        help="tables into docs/comparison.md and README.md, all pairs and charts into files",
    )
    return parser.parse_args(arguments)


def chosen(
    project: str, only: Sequence[str] | None, rows: Sequence[str] | None = None
) -> list[Comparison]:
    """Return a project's comparisons.

    Raises:
        ConfigError: the project has no comparisons, or none of a requested name, or a requested
            row is in none of them.
    """
    comparisons = from_project(project, "comparison", "comparisons", only)
    known = {contestant.slug for one in comparisons for contestant in one.contestants}
    unknown = sorted(set(rows or ()) - known)
    if unknown:
        raise ConfigError(f"there is no row {unknown}; the comparisons have {sorted(known)}")
    return comparisons


class Record:
    """The file with the measurements of a comparison."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data: dict[str, Any] = read_json(file) if file.exists() else {"rows": {}}

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Row slug -> seed -> measurements."""
        rows: dict[str, dict[str, Any]] = self.data["rows"]
        return rows

    def add(self, slug: str, seed: int, measured: dict[str, Any], command: str) -> None:
        """Add a result and write the file."""
        self.data.update(
            command=command,
            machines=sorted({*self.data.get("machines", ()), processor()}),
            torch=torch.__version__,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )
        self.rows.setdefault(slug, {})[str(seed)] = measured
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(str(self.file), (json.dumps(self.data) + "\n").encode())

    def notes(self) -> list[str]:
        """Return date, machines and command of the figures."""
        if "command" not in self.data:
            return []
        machines = " and ".join(self.data["machines"])
        return ["{date}, {}, torch {torch}: `{command}`".format(machines, **self.data)]


class Run:
    """The run of a row with one seed.

    Args:
        comparison: the comparison, with budget and test set.
        contestant: the row.
        seed: seed of sparsification and training.
        root: folder of all runs.
    """

    def __init__(
        self, comparison: Comparison, contestant: Contestant, seed: int, root: Path
    ) -> None:
        self.comparison, self.contestant, self.seed = comparison, contestant, seed
        self.folder = root / comparison.name / contestant.slug / f"seed{seed}"
        origins = (c for c in comparison.contestants if c.name == contestant.origin)
        self.origin = next((Run(comparison, row, seed, root) for row in origins), None)
        made = [self.origin.contestant.slug] if self.origin else []
        start = "_".join([*made, *contestant.sparsified]).replace("/", "-").replace("--", "")
        self.start = root / comparison.name / f"start_{start}" / f"seed{seed}"

    def measure(self) -> dict[str, Any]:
        """Make the weights and test them."""
        weights = self.weights()
        overrides = [
            *self.contestant.overrides,
            f"train.init_checkpoint={weights}",
            f"dataloader.test.dataset.names={self.comparison.test}",
            f"dataloader.evaluator.dataset_name={self.comparison.test}",
        ]
        test = self.folder / "test"
        self.command(
            "train_net",
            ["--config-file", self.config_file, "--eval-only", *overrides]
            + [f"train.output_dir={test}", f"dataloader.evaluator.output_dir={test}"],
        )
        gflops = self.gflops(overrides)  # its config registers the test set
        return {**self.accuracy(test), "gflops": gflops}

    @property
    def config_file(self) -> str:
        """The row's config."""
        return str(zoo.get_config_file(self.contestant.config))

    def weights(self) -> str:
        """Return the file of the row's weights, made if it is missing."""
        start = self.origin.weights() if self.origin else self.comparison.weights
        if self.contestant.sparsified:
            if not (self.start / OUTPUTS[-1]).is_file():  # rows with other options share it
                self.command(
                    "main",
                    ["sparsify", self.comparison.dense, f"train.init_checkpoint={start}"]
                    + ["train.device=cpu", "--images", self.comparison.images]
                    + [*self.contestant.sparsified, "--seed", str(self.seed)]
                    + ["--output", str(self.start)],
                )
            start = str(self.start / "model.pth")
        if not self.contestant.trained:
            return start
        self.command(
            "train_net",
            ["--config-file", self.config_file, "--resume", *self.comparison.overrides]
            + [*self.contestant.overrides, f"train.init_checkpoint={start}"]
            + [f"train.seed={self.seed}", f"train.output_dir={self.folder}"],
        )
        return str(self.folder / "model_final.pth")

    def command(self, module: str, arguments: Sequence[str]) -> None:
        """Run a command of the project, and append its output to the row's log.

        Raises:
            RuntimeError: the command failed; the message names the log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "commands.txt"
        with log.open("a") as output:
            code = subprocess.run(
                [sys.executable, "-m", f"tokendetr.cli.{module}", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if code:
            name = f"{self.contestant.name} (seed {self.seed})"
            raise RuntimeError(f"{name}: {module} ended with status {code}: see {log}")

    def accuracy(self, test: Path) -> dict[str, Any]:
        """Return the evaluation's figures, and replicates of AP for all and for small objects."""
        from detectron2.data import MetadataCatalog

        detections = read_json(test / "coco_instances_results.json")
        truth = read_json(Path(MetadataCatalog.get(self.comparison.test).json_file))
        times_RI = draw_images(len(truth["images"]), REPLICATES)
        replicates = {}
        figures: dict[str, Any] = {}
        for area, metric in zip(("all", "small", "medium", "large"), METRICS, strict=True):
            matches = match_images(truth, detections, area)
            figures[metric] = round(matches.average_precision(), 3)
            if area in AREAS:
                replicates[area] = [round(value, 3) for value in matches.replicates(times_RI)]
        return {**figures, "replicates": replicates}

    def gflops(self, overrides: Sequence[str]) -> float:
        """Return the mean operations of some test images, in 10^9."""
        cfg = load_measured_config(self.config_file, list(overrides))
        model = build_measured_model(cfg, list(overrides))
        batches = loaded_inputs(cfg, COUNTED_IMAGES)
        report = mean_report([count_flops(model, batch, arithmetic=False) for batch in batches])
        return round(report.total / 1e9, 4)


def run_missing(comparison: Comparison, record: Record, args: argparse.Namespace) -> None:
    """Measure the requested rows and seeds that are not recorded, seed by seed."""
    seeds = args.seeds or comparison.seeds
    rows = [c for c in comparison.contestants if not args.rows or c.slug in args.rows]
    missing = [(s, c) for s in seeds for c in rows if str(s) not in record.rows.get(c.slug, {})]
    command = f"python tools/study.py {args.project} --only {comparison.name}"
    for number, (seed, contestant) in enumerate(missing, 1):
        started = time.monotonic()
        measured = Run(comparison, contestant, seed, args.output.resolve()).measure()
        record.add(contestant.slug, seed, measured, command)
        took = time.monotonic() - started
        text = f"{comparison.name}: {contestant.slug}, seed {seed}: {measured['AP']:.1f} AP"
        print(f"[{number}/{len(missing)}] {text}, {took:.0f} s", flush=True)


@program(RuntimeError, ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    args = parse_arguments(arguments)
    for comparison in chosen(args.project, args.only, args.rows):
        if args.list:
            print(comparison.name, *(c.slug for c in comparison.contestants), sep="\n  ")
            continue
        record = Record(args.records / f"{comparison.name}.json")
        if not args.table:
            run_missing(comparison, record, args)
        for table in comparison.tables(record.rows, record.notes()):
            print(f"\n{table.markdown()}")
            if args.write:
                splice(args.records.parent / "comparison.md", table)
        if args.write:
            write_files(comparison, record, args.records)


def write_files(comparison: Comparison, record: Record, folder: Path) -> None:
    """Write all pairs beside the record, the chart that the page shows, and the README's rows."""
    if pairs := comparison.pairs_csv(record.rows):
        write_atomically(str(folder / f"{comparison.name}_pairs.csv"), pairs)
    if comparison.headline and record.rows:
        table = comparison.headline_table(record.rows, record.notes())
        splice(folder.parents[1] / "README.md", table)
    if comparison.is_drawn and record.rows:
        picture = folder.parent / "images" / f"{comparison.name}.png"
        picture.parent.mkdir(exist_ok=True)
        write_atomically(str(picture), draw_comparison(comparison, record.rows))


if __name__ == "__main__":
    main()
