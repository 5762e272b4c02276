"""Time one Deformable DETR (R50) with the same weights in other libraries and here, on the CPU.

    python -m benchmarks.peers --prepare FOLDER       # write the network for ONNX Runtime, OpenVINO
    python -m benchmarks.peers --files FOLDER --json  # measure, record, write the pages
    python -m benchmarks.peers --splice               # only write docs/performance.md, deploy.md

All are measured in turns on one image that fills its canvas. The bound of a row is the time that
its matrix products and convolutions would take at the speed of a large product in the same
precision. ``--extension`` adds OpenVINO with our operator (built by ``python csrc/openvino``),
``--detrex CHECKOUT`` adds detrex if it is installed. Use an otherwise idle machine; its load is
recorded.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peer_networks import (
    Run,
    detrex_model,
    huggingface_model,
    image_3HW,
    our_model,
    run_detector,
    run_huggingface,
    run_onnxruntime,
    run_openvino,
)
from benchmarks.whole_detectors import PAGE
from tokendetr import accelerate
from tokendetr.analysis.flops import count_flops
from tokendetr.analysis.inputs import write_json
from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.tables import Cell, Table, splice
from tokendetr.analysis.timing import Summary, take_turns, timed
from tokendetr.cli.argument_types import positive_int
from tokendetr.layers.cpu import optimize

RESULTS = PAGE.parent / "performance" / "peers.json"
CPU = torch.device("cpu")
PRODUCT = (4096, 1024, 1024)
"""Rows, inner and outer channels of the product whose speed gives the bound."""
PRECISIONS = ("float32", "bf16")
HEADLINE = (
    "Hugging Face transformers",
    "ONNX Runtime",
    "OpenVINO",
    "tokendetr",
    "OpenVINO with our extension",
)
"""Rows that the README shows."""
NETWORKS = {"dense": None, "sparse": 0.3}
"""Name in files -> share of the tokens that the encoder keeps."""
SPARSE = ", Sparse DETR .3"
"""What the name of a contender with the sparse network ends with."""


@dataclass(frozen=True)
class Contender:
    """One way to run the network.

    Attributes:
        name: its name in the table.
        precision: precision of its arithmetic.
        run: runs one forward pass and returns the scores, best first.
        gmacs: multiply-adds of its products and convolutions, in 10^9.
    """

    name: str
    precision: str
    run: Run
    gmacs: float


def prepare(folder: Path, size: Sequence[int]) -> None:
    """Export the network for ONNX Runtime and OpenVINO, in standard operators and with ours."""
    from tokendetr.deploy.entry import DeployedDetector
    from tokendetr.deploy.programs import Format, trace, write_program

    folder.mkdir(parents=True, exist_ok=True)
    theirs = huggingface_model()
    canvas = (int(size[0]), int(size[1]))
    formats: tuple[tuple[Format, str], ...] = (("onnx", "onnx"), ("onnx-custom", "custom.onnx"))
    for name, keep in NETWORKS.items():
        program = trace(DeployedDetector(our_model(theirs, keep=keep), padding=False), canvas)
        for format, ending in formats:
            write_program(program, folder / f"{name}.{ending}", format)
            print(f"{folder}/{name}.{ending}", file=sys.stderr, flush=True)


def _exported(args: argparse.Namespace, name: str, image: Tensor) -> Iterable[tuple[str, str, Run]]:
    """Yield name, precision and function of each runtime that has a file."""
    if args.files is None:
        return
    onnx = args.files / f"{name}.onnx"
    yield "ONNX Runtime", "float32", run_onnxruntime(onnx, image, args.threads)
    for precision in PRECISIONS:
        yield "OpenVINO", precision, run_openvino(onnx, image, args.threads, precision)
    if args.extension is not None:
        custom = args.files / f"{name}.custom.onnx"
        for precision in PRECISIONS:
            run = run_openvino(custom, image, args.threads, precision, args.extension)
            yield "OpenVINO with our extension", precision, run


def contenders(args: argparse.Namespace) -> list[Contender]:
    """Build all contenders that can run here."""
    image = image_3HW(args.input_size)
    inputs = [{"image": image, "height": image.shape[1], "width": image.shape[2]}]
    theirs, quick = huggingface_model(), huggingface_model()
    accelerate(quick)
    models = {name: our_model(theirs, keep=keep) for name, keep in NETWORKS.items()}
    gmacs = {name: count_flops(model, inputs).total / 1e9 for name, model in models.items()}
    found = [
        Contender(name, precision, run_huggingface(model, image, precision), gmacs["dense"])
        for precision in PRECISIONS
        for name, model in (
            ("Hugging Face transformers", theirs),
            ("Hugging Face transformers, `tokendetr.accelerate`", quick),
        )
    ]
    if args.detrex is not None:
        run = run_detector(detrex_model(theirs, args.detrex), image, optimized=False)
        found.append(Contender("detrex", "float32", run, gmacs["dense"]))
    for name, model in models.items():
        label = "" if name == "dense" else SPARSE
        runs = list(_exported(args, name, image))
        for precision in PRECISIONS:
            runs.append(
                ("tokendetr", precision, run_detector(model, image, precision, optimized=True))
            )
        found += [
            Contender(f"{who}{label}", precision, run, gmacs[name]) for who, precision, run in runs
        ]
    return found


def product_speed(precision: str) -> float:
    """Return the best speed of a large matrix product in 10^9 multiply-adds per second."""
    rows, inner, outer = PRODUCT
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    layer = nn.Linear(inner, outer, bias=False).to(dtype)
    optimize(layer)
    x = torch.rand(rows, inner).to(dtype)
    return rows * inner * outer / 1e9 / min(timed(lambda: layer(x), CPU) for _ in range(9))


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders in turns, and return the record."""
    load = os.getloadavg()[0]
    if load > args.threads:
        logging.warning("the machine is not idle (load %.1f): times will be too long", load)
    speeds = {precision: product_speed(precision) for precision in ("float32", "bf16")}
    taking_part = contenders(args)
    runs = {f"{each.name} {each.precision}": each.run for each in taking_part}
    samples, scores = take_turns(runs, CPU, args.repeats)
    # The scores of one network, dense or sparse, are compared with those of its first contender.
    reference: dict[float, Tensor] = {}
    gaps = []
    for each, found in zip(taking_part, scores.values(), strict=True):
        expected = reference.setdefault(each.gmacs, found)
        best = min(100, len(found))
        gaps.append(float((found[:best] - expected[:best]).abs().max()))
    rows = [
        {
            "name": each.name,
            "precision": each.precision,
            "ms": [round(value, 1) for value in (summary.median, summary.p10, summary.p90)],
            "bound_ms": round(1e3 * each.gmacs / speeds[each.precision], 1),
            "largest_score_difference": gap,
        }
        for each, times, gap in zip(taking_part, samples.values(), gaps, strict=True)
        for summary in [Summary.of(times)]
    ]
    return {
        "rows": rows,
        "command": "python -m benchmarks.peers --files FOLDER "
        + "".join(f"--{name} PATH " for name in ("extension", "detrex") if getattr(args, name))
        + "--json",
        "size": list(args.input_size),
        "threads": args.threads,
        "repeats": args.repeats,
        "load_before": load,
        "product_gmacs_per_s": {name: round(speed, 1) for name, speed in speeds.items()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
    }


def table(recorded: dict[str, Any]) -> Table:
    """Return the record as a table."""
    ours = {
        row["precision"]: row["ms"][0] for row in recorded["rows"] if row["name"] == "tokendetr"
    }
    rows: list[list[Cell]] = [
        [
            row["name"],
            row["precision"],
            f"{row['ms'][0]:.0f}",
            f"{row['bound_ms']:.0f}",
            f"{row['ms'][0] / ours[row['precision']]:.2f}",
            f"{row['largest_score_difference']:.0e}",
        ]
        for row in recorded["rows"]
    ]
    speeds = recorded["product_gmacs_per_s"]
    return Table(
        name="peers",
        title=f"Deformable DETR R50, one image of {' x '.join(map(str, recorded['size']))} pixels, "
        f"the same random weights, {recorded['threads']} threads",
        columns=("run by", "precision", "ms", "bound, ms")
        + ("times tokendetr's time", "scores differ by"),
        rows=rows,
        notes=(
            f"Medians of {recorded['repeats']} turns; {recorded['machine']}, "
            f"{recorded['date']}, load {recorded['load_before']:.1f} before, "
            f"`{recorded['command']}`.",
            f"Bound: products and convolutions at {2 * speeds['float32']:.0f} GFLOP/s in float32, "
            f"{2 * speeds['bf16']:.0f} in bf16, which a product of {PRODUCT} reaches here.",
            "Scores: largest difference among the best 100 from the first row of the same network.",
        ),
    )


def exported_table(recorded: dict[str, Any]) -> Table:
    """Return, of the record, what exported files and the model take, dense and sparse."""
    ms = {(row["name"], row["precision"]): row["ms"][0] for row in recorded["rows"]}
    rows: list[list[Cell]] = [
        [name, precision, f"{dense:.0f}", f"{sparse:.0f}", f"{dense / sparse:.2f}"]
        for (name, precision), dense in ms.items()
        if (sparse := ms.get((name + SPARSE, precision))) is not None
    ]
    return Table(
        name="export-runtimes",
        title=f"Deformable DETR R50, one image of {' x '.join(map(str, recorded['size']))} pixels, "
        f"files made with `--no-padding`, {recorded['threads']} threads",
        columns=("run by", "precision", "dense, ms", "Sparse DETR .3, ms", "times faster"),
        rows=rows,
        notes=(
            f"Medians of {recorded['repeats']} turns; {recorded['machine']}, "
            f"{recorded['date']}, `{recorded['command']}`.",
        ),
    )


def headline(recorded: dict[str, Any]) -> Table:
    """Return a few rows of the record, a column for each precision, for the README."""
    times = {(row["name"], row["precision"]): f"{row['ms'][0]:.0f}" for row in recorded["rows"]}
    size = " x ".join(map(str, recorded["size"]))
    return Table(
        name="peers_headline",
        title="",
        columns=(
            f"Deformable DETR R50, {size} pixels, {recorded['threads']} threads",
            *(f"ms, {precision}" for precision in PRECISIONS),
        ),
        rows=[[name, *(times.get((name, each)) for each in PRECISIONS)] for name in HEADLINE],
        notes=(f"`python -m benchmarks.peers`; {recorded['machine']}; {recorded['date']}.",),
    )


def write_pages(recorded: dict[str, Any]) -> None:
    """Write the record's tables into the pages."""
    splice(PAGE, table(recorded))
    splice(PAGE.parent / "deploy.md", exported_table(recorded))
    splice(PAGE.parents[1] / "README.md", headline(recorded))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--prepare", type=Path, metavar="FOLDER", help="only export the network there")
    add("--files", type=Path, metavar="FOLDER", help="what --prepare wrote; without: no runtimes")
    add("--extension", type=Path, metavar="FILE", help="the library of our OpenVINO extension")
    add("--detrex", type=Path, metavar="CHECKOUT", help="detrex's source tree")
    add(
        "--input-size", type=positive_int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH")
    )
    add("--threads", type=positive_int, default=2)
    add("--repeats", type=positive_int, default=3, help="turns (default 3)")
    add("--json", nargs="?", type=Path, const=RESULTS, metavar="FILE", help="record the figures")
    add("--splice", action="store_true", help="only write the pages")
    args = parser.parse_args(arguments)
    if args.prepare is not None:
        prepare(args.prepare, args.input_size)
        return
    if args.splice:
        write_pages(json.loads(RESULTS.read_text()))
        return
    torch.set_num_threads(args.threads)
    recorded = measure(args)
    sys.stdout.write(table(recorded).markdown())
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(recorded, str(args.json))
        if args.json == RESULTS:
            write_pages(recorded)


if __name__ == "__main__":
    main()
