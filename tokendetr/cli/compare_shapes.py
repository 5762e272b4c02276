"""Compare the project's small detectors for the shapes data set in one table.

Examples:
    tokendetr compare-shapes
    tokendetr compare-shapes --write    # into docs/comparison.md and the methods' READMEs
    tokendetr compare-shapes --recorded --write    # the same from the record, nothing measured
    tokendetr compare-shapes --row mine=my_config.py:output/mine/model_best.pth
    tokendetr compare-shapes --corr --write
    tokendetr compare-shapes --json output/comparison.json

Rows whose checkpoint file is not there are left out, with a note; --write keeps what was recorded
of them in docs/comparison/shapes.json. Accuracy and recall of the
queries are those of the whole validation set; GFLOPs are the mean of 20 of its images, a
multiply-add counts 1; milliseconds are medians of single images, the detectors taking turns. They
are printed and recorded; the page, whose rows are of several days and machines, has no times.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from torch import nn

from tokendetr.analysis.flops import count_flops, mean_report
from tokendetr.analysis.inputs import (
    build_measured_model,
    load_measured_config,
    loaded_inputs,
    write_json,
)
from tokendetr.analysis.recorded_rows import measured_notes, record_rows
from tokendetr.analysis.tables import Cell, Table, splice
from tokendetr.analysis.timing import timed
from tokendetr.cli.argument_types import output_file, positive_int
from tokendetr.cli.arguments import described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.config.files import PROJECTS_DIR, checkpoint_file, config_file
from tokendetr.evaluation.decoder_correlation import CorrEvaluator
from tokendetr.evaluation.run import Evaluation
from tokendetr.evaluation.token_recall import TokenRecall

RECORDS = PROJECTS_DIR.parent / "docs" / "comparison" / "shapes.json"
COUNTED_IMAGES, TIMED_IMAGES, WARM_UP = 20, 25, 3
CORR_IMAGES = 50
COLUMNS = ("detector", "AP", "APs", "APm", "APl", "GFLOPs", "in the encoder")
DENSE = "DINO"
METHODS = {
    "Dynamic DETR": "dynamic_detr",
    "Sparse DETR": "sparse_detr",
    "Focus-DETR": "focus_detr",
}
"""Projects whose READMEs show their rows beside the dense detector's."""
RECALLS = ("queries", "boxes reached, by level", "box tokens kept, by level")


@dataclass(frozen=True)
class Row:
    """A detector of the comparison, with its lazy config and checkpoint file."""

    name: str
    config: str
    checkpoint: str


def small(name: str, stem: str) -> Row:
    """Return a row for one of the project's small detectors."""
    return Row(name, str(config_file(stem)), checkpoint_file(stem))


def default_rows() -> list[Row]:
    """Return the rows of the dense detector, of every method, and of random selection."""
    return [
        small("DINO", "dino_shapes"),
        small("Dynamic DETR", "dynamic_dino_shapes"),
        small("Dynamic DETR, a third of the queries", "dynamic_dino_shapes_third"),
        small("Sparse DETR", "sparse_dino_shapes"),
        small("random tokens", "sparse_dino_shapes_random"),
        small("Focus-DETR", "focus_dino_shapes"),
    ]


def parse_row(text: str) -> Row:
    """Read NAME=CONFIG:CHECKPOINT."""
    name, equals, files = text.partition("=")
    config, colon, checkpoint = files.partition(":")
    if not (name and equals and config and colon and checkpoint):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=CONFIG:CHECKPOINT")
    return Row(name, config, checkpoint)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    parser.add_argument(
        "--row",
        type=parse_row,
        action="append",
        metavar="NAME=CONFIG:CHECKPOINT",
        help="a detector; may be repeated (default: those that the project ships)",
    )
    parser.add_argument("--images", type=positive_int, help="use only the first test images")
    parser.add_argument("--threads", type=positive_int, help="CPU threads of PyTorch")
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    parser.add_argument(
        "--recorded", action="store_true", help="measure nothing: take the recorded rows"
    )
    parser.add_argument(
        "--untimed", action="store_true", help="measure no times; recorded ones stay"
    )
    parser.add_argument(
        "--corr", action="store_true", help="measure what of the decoder's attention is updated"
    )
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write the numbers to FILE as well"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="key=value overrides of all configs, at the end"
    )
    return parse_with_overrides(parser, arguments)


def evaluate(cfg: DictConfig, model: nn.Module, images: int | None) -> dict[str, float]:
    """Return accuracy and recall of the queries, as ``task/metric``."""
    dataset = cfg.dataloader.test.dataset.names
    recall = L(TokenRecall)(dataset_name=dataset)
    cfg.dataloader.evaluator = [cfg.dataloader.evaluator, recall]
    results = Evaluation(cfg, model, images=images)()
    return {f"{task}/{name}": v for task, values in results.items() for name, v in values.items()}


def count(cfg: DictConfig, model: nn.Module) -> dict[str, float]:
    """Count the GFLOPs of the model and of its encoder, averaged over some test images."""
    reports = [count_flops(model, batch) for batch in loaded_inputs(cfg, COUNTED_IMAGES)]
    mean = mean_report(reports)
    return {"gflops": mean.total / 1e9, "encoder": mean.by_part["encoder"] / 1e9}


@torch.no_grad()
def measure(cfg: DictConfig, models: dict[str, nn.Module]) -> dict[str, float]:
    """Measure the median milliseconds per image of each model, in turns."""
    device = torch.device(cfg.train.device)
    samples: dict[str, list[float]] = {name: [] for name in models}
    for number, batch in enumerate(loaded_inputs(cfg, WARM_UP + TIMED_IMAGES)):
        for name, model in models.items():
            seconds = timed(partial(model, batch), device)
            if number >= WARM_UP:
                samples[name].append(1e3 * seconds)
    return {name: statistics.median(times) for name, times in samples.items()}


def by_level(numbers: Mapping[str, Any], name: str) -> str:
    """Return the percentages of all levels, finest first."""
    levels = [key for key in numbers if key.startswith(f"tokens/{name}-l")]
    return " / ".join(f"{numbers[key]:.0f}" for key in sorted(levels))


CORR_MODES: dict[str, dict[str, Any]] = {
    "mean of layers": {},
    "any layer": {"layers": "any"},
    "top 10 %, mean of layers": {"top": 0.1},
}


def correlations(cfg: DictConfig, model: nn.Module, images: int) -> dict[str, dict[str, float]]:
    """Measure Corr of some test images in percent, by mode (see CorrEvaluator)."""
    evaluators = {name: CorrEvaluator(**mode) for name, mode in CORR_MODES.items()}
    found = {}
    for name, evaluator in evaluators.items():
        evaluator.reset()
        with torch.no_grad():
            for batch in loaded_inputs(cfg, images):
                evaluator.process(batch, model(batch))
        result = evaluator.evaluate()
        assert result is not None
        found[name] = result["decoder_attention"]
    return found


def corr_table(results: dict[str, dict[str, dict[str, float]]], images: int) -> Table:
    """Return Corr of all detectors as a table."""
    rows: list[list[Cell]] = []
    for name, modes in results.items():
        mean = modes["mean of layers"]
        levels = [key for key in sorted(mean) if key.startswith("Corr_level")]
        cells = [f"{modes[mode]['Corr']:.0f}" for mode in CORR_MODES]
        cells[0] += f" ± {mean['Corr_spread']:.0f}"
        rows.append([name, *cells, " / ".join(f"{mean[key]:.0f}" for key in levels)])
    return Table(
        name="corr",
        title=f"Corr: attention of the decoder on updated tokens, percent, {images} images",
        columns=("detector", *CORR_MODES, "by level, mean of layers"),
        rows=rows,
    )


def compare_corr(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Measure Corr of all detectors, and print the table."""
    images = args.images or CORR_IMAGES
    results: dict[str, dict[str, dict[str, float]]] = {}
    for row in args.row or default_rows():
        if Path(row.checkpoint).is_file():
            overrides = [*args.opts, f"train.init_checkpoint={row.checkpoint}"]
            cfg = load_measured_config(row.config, overrides)
            model = build_measured_model(cfg, overrides)
            results[row.name] = correlations(cfg, model, images)
    comparison = corr_table(results, images)
    print(comparison.markdown())
    if args.write:
        splice(PROJECTS_DIR.parent / "docs" / "comparison.md", comparison)
    return results


def table(
    results: Mapping[str, Mapping[str, Any]], missing: Sequence[Row] = (), *, timed: bool = False
) -> Table:
    """Return the comparison as a table, with times only if all are of one run."""
    rows: list[list[Cell]] = []
    for name, numbers in results.items():
        accuracy = [numbers[f"bbox/{metric}"] for metric in ("AP", "APs", "APm", "APl")]
        gflops = [f"{numbers[key]:.3f}" for key in ("gflops", "encoder")]
        recalls = [by_level(numbers, "reached"), by_level(numbers, "kept")]
        queries = f"{numbers['tokens/queries']:.0f} %"
        times = [numbers.get("ms")] * timed
        rows.append([name, *accuracy, *gflops, *times, queries, *recalls])
    notes = [
        f"left out: {row.name}; there is no {Path(row.checkpoint).name}, which is made as "
        "checkpoints/README.md of its project says"
        for row in missing
    ]
    return Table(
        name="shapes",
        title="Small detectors on the shapes validation set",
        columns=(*COLUMNS, *["ms per image"] * timed, *RECALLS),
        rows=rows,
        notes=notes,
    )


def compare(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Evaluate, count and time all detectors, and print the table."""
    if args.threads:
        torch.set_num_threads(args.threads)
    rows: Sequence[Row] = args.row or default_rows()
    missing = [row for row in rows if not Path(row.checkpoint).is_file()]
    results: dict[str, dict[str, float]] = {}
    models: dict[str, nn.Module] = {}
    cfg: DictConfig | None = None
    for row in (row for row in rows if row not in missing):
        overrides = [*args.opts, f"train.init_checkpoint={row.checkpoint}"]
        cfg = load_measured_config(row.config, overrides)
        models[row.name] = build_measured_model(cfg, overrides)
        results[row.name] = count(cfg, models[row.name])
        results[row.name] |= evaluate(cfg, models[row.name], args.images)
    if cfg is None:
        raise ValueError(f"none of the checkpoints exists: {[row.checkpoint for row in missing]}")
    for name, milliseconds in ({} if args.untimed else measure(cfg, models)).items():
        results[name]["ms"] = milliseconds
    print(table(results, missing, timed=not args.untimed).markdown())
    if args.write:
        write_pages(record_rows(RECORDS, results, timed=not args.untimed))
    return results


def write_pages(recorded: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the recorded rows into the comparison, and each method's into its README."""
    measured = {name: {"measured": row["measured"]} for name, row in recorded.items()}
    comparison = replace(table(recorded), notes=tuple(measured_notes(measured)))
    splice(PROJECTS_DIR.parent / "docs" / "comparison.md", comparison)
    for name, project in METHODS.items():
        splice(PROJECTS_DIR / project / "README.md", method_table(recorded, name))


def show_recorded(write: bool) -> dict[str, dict[str, Any]]:
    """Print the recorded rows, and on request write the pages."""
    recorded: dict[str, dict[str, Any]] = json.loads(RECORDS.read_text())
    print(table(recorded).markdown())
    if write:
        write_pages(recorded)
    return recorded


def method_table(recorded: Mapping[str, Mapping[str, Any]], method: str) -> Table:
    """Return the dense detector and a method side by side, without times."""
    shown = [name for name in recorded if name == DENSE or name.startswith(method)]
    rows = {name: recorded[name] for name in shown}
    full = table(rows)
    shown_columns = len(COLUMNS) + 1  # the last one is the number of queries
    columns = full.columns[:shown_columns]
    cells = [row[:shown_columns] for row in full.rows]
    return replace(
        full,
        title="Small detectors on the 250 validation images of shapes",
        columns=columns,
        rows=cells,
        notes=[
            *measured_notes({name: {"measured": row["measured"]} for name, row in rows.items()}),
            "`python tools/compare_shapes.py --write`; a multiply-add counts 1.",
        ],
    )


@program(ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if args.recorded:
        results = show_recorded(args.write)
    else:
        results = compare_corr(args) if args.corr else compare(args)
    if args.json:
        write_json(results, args.json)


if __name__ == "__main__":
    main()
