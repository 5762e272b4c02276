"""Train and evaluate the variants of a study, and print them as a table.

Examples:
    tokendetr ablate dynamic_detr                # every study of projects/dynamic_detr
    tokendetr ablate dynamic_detr --only ablations --write
    tokendetr ablate dynamic_detr --table        # only the results so far
    tokendetr ablate sparsify                    # detectors made sparse without labels

The study "sparsify" is ``python -m benchmarks.sparsification``: keep ratio x {scores, bypass at the
end, in every layer, distillation} x {shapes, BCCD}, three seeds, and one seed and fewer rows of the
other detectors, into docs/bypass.md; --only names configs.

Finished runs are not repeated, so an interrupted study continues where it stopped. Every run is one
call of tools/train_net.py, with its log in its folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import instantiate

from tokendetr.analysis.ablations import METRICS, Study, Variant
from tokendetr.analysis.flops import count_flops, synthetic_inputs
from tokendetr.analysis.project_pages import splice_project
from tokendetr.cli.argument_types import output_folder
from tokendetr.cli.arguments import described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.cli.project_studies import from_project
from tokendetr.config import zoo
from tokendetr.config.files import PROJECTS_DIR
from tokendetr.config.load import load_config
from tokendetr.errors import ConfigError, DatasetError
from tokendetr.io.atomic import write_atomically
from tokendetr.train.writers import recorded_rows

SPARSIFY = "sparsify"
SPARSIFIED = (
    "dino_shapes",
    "dino_bccd",
    "deformable_detr_shapes",
    "h_deformable_detr_shapes",
    "dab_deformable_detr_shapes",
    "dn_deformable_detr_shapes",
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument(
        "project", help=f"folder under projects/ that has a studies.py, or {SPARSIFY!r}"
    )
    parser.add_argument("--only", nargs="+", metavar="STUDY", help="these studies (default all)")
    parser.add_argument(
        "--output",
        type=output_folder,
        default=Path("output/ablations"),
        metavar="DIR",
        help="folder of the runs (default output/ablations)",
    )
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument(
        "--write", action="store_true", help="put the tables into the project's pages"
    )
    parser.add_argument("opts", nargs="*", help="overrides for every run, key=value")
    return parse_with_overrides(parser, arguments, intermixed=True)


def chosen_studies(project: str, only: Sequence[str] | None) -> list[Study]:
    """Return a project's studies.

    Raises:
        ConfigError: the project has no studies, or none of a requested name.
    """
    return from_project(project, "study", "studies", only)


def run_cell(study: Study, variant: Variant, seed: int, root: Path, opts: Sequence[str]) -> None:
    """Train and evaluate one variant with one seed, and write its ``results.json``.

    Raises:
        RuntimeError: training failed; the message names its log.
    """
    folder = study.cell_dir(root, variant, seed)
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [
        *study.overrides,
        *variant.overrides,
        f"train.seed={seed}",
        f"train.output_dir={folder}",
        f"dataloader.evaluator.output_dir={folder}",
        *opts,
    ]
    config_file = str(zoo.get_config_file(study.config))
    gflops = count_gflops(config_file, overrides)  # also finds mistakes before the training
    log = folder / "train.txt"
    with log.open("w") as output:
        code = subprocess.run(
            # --resume: continue an attempt that was interrupted.
            [sys.executable, "-m", "tokendetr.cli.train_net", "--config-file", config_file]
            + ["--resume"]
            + overrides,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code:
        raise RuntimeError(f"{variant.name} (seed {seed}) ended with status {code}: see {log}")
    results = {**last_metrics(folder), "gflops": gflops}
    write_atomically(str(folder / "results.json"), json.dumps(results, indent=2).encode())
    for weights in folder.glob("*.pth"):
        weights.unlink()


def count_gflops(config_file: str, overrides: Sequence[str]) -> float:
    """Count the operations of a config's model on an image of 192 x 256 pixels, in 10^9."""
    model = instantiate(load_config(config_file, list(overrides)).model)
    return count_flops(model, synthetic_inputs(192, 256), arithmetic=False).total / 1e9


def last_metrics(folder: Path) -> dict[str, float]:
    """Return the last evaluation in a run's ``metrics.json``.

    Raises:
        DatasetError: there is none.
    """
    rows = recorded_rows(str(folder / "metrics.json"))
    evaluated = [row for row in rows if set(METRICS.values()) <= set(row)]
    if not evaluated:
        raise DatasetError(f"{folder / 'metrics.json'} has no evaluation: remove {folder}")
    return {key: evaluated[-1][key] for key in METRICS.values()}


def run_sparsification(args: argparse.Namespace) -> None:
    """Run the study of detectors made sparse without labels, a program of the source checkout.

    Raises:
        ConfigError: a detector has no weights, or there is no checkout.
        RuntimeError: the study failed.
    """
    root = PROJECTS_DIR.parent
    if not (root / "benchmarks" / "sparsification.py").is_file():
        raise ConfigError(f"the study {SPARSIFY!r} needs a checkout of the sources, not a wheel")
    for name in args.only or SPARSIFIED:
        if zoo.get_checkpoint(name) is None:
            raise ConfigError(
                f"{name} has no trained weights yet: make them as checkpoints/README.md of its "
                "project says"
            )
        options = [name, *args.opts]
        options += ["--splice"] if args.table else []
        command = [sys.executable, "-m", "benchmarks.sparsification", *options]
        if subprocess.run(command, cwd=root, check=False).returncode:
            raise RuntimeError(f"the study of {name} ended early; what it has recorded is kept")


@program(RuntimeError, ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    args = parse_arguments(arguments)
    if args.project == SPARSIFY:
        run_sparsification(args)
        return
    studies = chosen_studies(args.project, args.only)
    root = args.output.resolve()
    cells = [(s, v, seed) for s in studies for seed in s.seeds for v in s.variants]
    missing = [c for c in cells if not (c[0].cell_dir(root, *c[1:]) / "results.json").exists()]
    for number, (study, variant, seed) in enumerate([] if args.table else missing, 1):
        started = time.monotonic()
        run_cell(study, variant, seed, root, args.opts)
        took = time.monotonic() - started
        cell = f"{study.name}: {variant.slug}, seed {seed}: {took:.0f} s"
        print(f"[{number}/{len(missing)}] {cell}", flush=True)
    for study in studies:
        table = study.table(study.results(root))
        print(f"\n{table.markdown()}")
        if args.write:
            splice_project(args.project, PROJECTS_DIR, table)


if __name__ == "__main__":
    main()
