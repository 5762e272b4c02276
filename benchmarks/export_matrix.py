"""Export every detector with every method in every format, and record which files work.

    python benchmarks/export_matrix.py --files FOLDER --library FILE...         # export and verify
    python benchmarks/export_matrix.py --files FOLDER --library FILE... --time  # time the files
    python benchmarks/export_matrix.py --splice                                 # write the page

A row is a detector, a cell its file in one format. Cells are recorded one by one in
docs/deploy/matrix.json, and those that it has are not made again without --again, so that the
matrix can be made in parts (--rows, --formats). Small detectors run on 256 x 256 pixels, ResNet-50
on 800 x 1216. Weights are the project's if there are some, else random. --time runs the files of
FOLDER and the model in turns; the machine should be idle otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from omegaconf import DictConfig, open_dict
from torch import nn
from torch.export import ExportedProgram

from benchmarks.export_table import proven_table, times_table
from tokendetr.analysis.inputs import write_json
from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.tables import splice
from tokendetr.analysis.timing import timed
from tokendetr.config import load_config, sparsify
from tokendetr.deploy import DeployedDetector, ExportOptions, export, open_exported
from tokendetr.deploy.programs import SUFFIXES, example_inputs, trace
from tokendetr.deploy.verification import detect, verification_images
from tokendetr.errors import ExportCheckError, ExportError
from tokendetr.layers.cpu import optimize
from tokendetr.predict.predictor import build_model

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs/deploy.md", ROOT / "docs/deploy/matrix.json"
DETECTORS = (
    "dino",
    "deformable_detr",
    "dab_deformable_detr",
    "dn_deformable_detr",
    "h_deformable_detr",
)
METHODS = {
    "": "",
    "sparse": "sparse_dino_shapes",
    "focus": "focus_dino_shapes",
    "dynamic": "dynamic_dino_shapes",
}
SMALL, LARGE = (256, 256), (800, 1216)
LARGE_CONFIGS = {
    "dino_r50_4scale_12ep": "",
    "dynamic_dino_r50_4scale_12ep": "dino_r50_4scale_12ep",
    "deformable_detr_r50_two_stage_50ep": "",
    "sparse_deformable_detr_r50_50ep": "deformable_detr_r50_two_stage_50ep",
}
"""Config with ResNet-50 -> that of the dense detector."""
BACKBONES = (
    "spt_dino_shapes",
    "token_transforming_dino_shapes_vit",
    "token_transforming_dino_shapes",
)


@dataclass(frozen=True)
class Row:
    """A detector of the matrix.

    Attributes:
        name: name of the row.
        config: config of the model.
        method: config whose sparsifier the model gets; "" for none.
        size: height and width in pixels.
        dense: name of the row of the same detector without a method; "" if this is it.
    """

    name: str
    config: str
    method: str
    size: tuple[int, int]
    dense: str = ""


def rows() -> list[Row]:
    """Return all rows of the matrix."""
    found = []
    for detector in DETECTORS:
        for method, config in METHODS.items():
            own = f"{method}_dino_shapes" if detector == "dino" and method else f"{detector}_shapes"
            taken = "" if detector == "dino" else config
            name = f"{detector}_{method}" if method else detector
            found.append(Row(name, own, taken, SMALL, detector if method else ""))
    found += [Row(name, name, "", SMALL) for name in BACKBONES]
    return found + [Row(name, name, "", LARGE, dense) for name, dense in LARGE_CONFIGS.items()]


def lines() -> dict[str, list[str]]:
    """Return the lines of the page's table: a small detector with all methods, or one row."""
    found: dict[str, list[str]] = {}
    for row in rows():
        detector, methods = row.dense or row.name, ", ".join(filter(None, METHODS))
        text = f"{detector}: dense, {methods}" if detector in DETECTORS else row.name
        found.setdefault(text, []).append(row.name)
    return found


def with_method(cfg: DictConfig, config: str) -> DictConfig:
    """Give a config's detector the sparsifier of another config."""
    node = deepcopy(load_config(config).model.transformer.encoder.sparsifier)
    two_stage = bool(cfg.model.get("as_two_stage", False))
    with open_dict(node):
        if "sparse" in config and not two_stage:
            node.projection = "own"
        if "focus" in config and not two_stage:
            node.num_classes = cfg.model.num_classes
    sparsify(cfg.model, node)
    return cfg


def build(row: Row) -> nn.Module:
    """Return a row's model, with random weights if it has none.

    They include every parameter: initial biases and embeddings would make all queries alike.
    """
    cfg = load_config(row.config, ["train.device=cpu"], trained=True)
    if not Path(str(cfg.train.init_checkpoint)).is_file():
        cfg.train.init_checkpoint = ""  # the project does not ship these weights
    if row.method:
        cfg = with_method(cfg, row.method)
    torch.manual_seed(0)
    model = build_model(cfg)
    if not cfg.train.init_checkpoint:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def traced(model: nn.Module, size: tuple[int, int]) -> tuple[ExportedProgram, str | None]:
    """Trace a model for images of any size, or else for images that fill the canvas.

    Returns:
        The program, and why images cannot be smaller than its canvas (None if they can).
    """
    try:
        return trace(DeployedDetector(model), size), None
    except ExportError as error:
        if "--no-padding" not in str(error):
            raise
        return trace(DeployedDetector(model, padding=False), size), str(error)


def file_of(files: Path, row: Row, format: str) -> Path:
    """Return the path of a cell's file."""
    return files / f"{row.name}.{format}{SUFFIXES[format]}"


def export_cells(
    row: Row, formats: Sequence[Any], libraries: Sequence[str], files: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Export a row in some formats from one traced program.

    Yields:
        The format and its cell, to be recorded at once.
    """
    model = build(row)
    began = time.perf_counter()
    try:
        program, why = traced(model, row.size)
    except ExportError as error:
        yield from ((format, {"works": False, "why": str(error)}) for format in formats)
        return
    common: dict[str, Any] = {"trace_seconds": round(time.perf_counter() - began, 1)}
    common |= {"padding": why is None, "why_no_padding": why}
    images = verification_images(row.size, padding=why is None)
    expected = detect(model, images)
    for format in formats:
        path = file_of(files, row, format)
        options = ExportOptions(format, row.size, padding=why is None)
        library = libraries if format == "onnx-custom" else None
        try:
            record = export(
                model,
                path,
                options,
                library=library,
                images=images,
                source=row.config,
                program=program,
                expected=expected,
            )
        except (ExportError, ExportCheckError) as error:
            yield format, {"works": False, "why": str(error).replace(str(path), "the file")}
            continue
        facts = {name: record[name] for name in ("checks", "versions", "date")}
        yield format, common | facts | {"works": True, "seconds": round(record["seconds"], 1)}


def runs_of(row: Row, cells: dict[str, dict[str, Any]], files: Path) -> list[tuple[str, str]]:
    """Return (format, runtime) of every way to run the row's files that are in the folder."""
    return [
        (format, runtime)
        for format, cell in cells.items()
        if cell["works"] and file_of(files, row, format).exists()
        for runtime in cell["checks"]
    ]


def time_row(
    row: Row, runs: Sequence[tuple[str, str]], libraries: Sequence[str], files: Path, repeats: int
) -> dict[str, Any]:
    """Return the median milliseconds of the model and of its files in every runtime, in turns."""
    model, inputs = build(row), example_inputs(row.size)
    record = [{"image": inputs[0][0]}]
    calls: dict[str, Callable[[], object]] = {"model": lambda: model(record)}
    for format, runtime in runs:
        runner = open_exported(
            file_of(files, row, format),
            runtime,
            library=libraries if format == "onnx-custom" else None,
            threads=torch.get_num_threads(),
        )
        calls[f"{format} {runtime}"] = partial(runner, *inputs)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with optimize(model), torch.no_grad():
        for turn in range(1 + repeats):
            for name, call in calls.items():
                seconds = timed(call, torch.device("cpu"))
                if turn:  # the first one warms up
                    samples[name].append(1e3 * seconds)
    medians = {name: round(statistics.median(times), 1) for name, times in samples.items()}
    return {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "ms": medians}


def read(path: Path) -> dict[str, Any]:
    """Return the record, empty if there is none."""
    return json.loads(path.read_text()) if path.exists() else {"rows": {}, "times": {}}


def keep(path: Path, place: Sequence[str], value: dict[str, Any]) -> None:
    """Put a value into the record, read anew under a lock: several processes may write to it."""
    with FileLock(Path(tempfile.gettempdir()) / "export_matrix.lock"):
        known = read(path)
        node = known
        for name in place[:-1]:
            node = node.setdefault(name, {})
        node[place[-1]] = {**value, "machine": machine(), "date": time.strftime("%Y-%m-%d")}
        write_json(known, str(path))
    print(f"{' '.join(place)}: {json.dumps(value)}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=".*", help="regular expression of rows' names")
    parser.add_argument(
        "--formats", nargs="+", choices=SUFFIXES, default=["pt2", "onnx", "onnx-custom"]
    )
    parser.add_argument("--library", nargs="+", default=[], help="run onnx-custom with these")
    parser.add_argument("--files", type=Path, help="folder of the exported files")
    parser.add_argument("--again", action="store_true", help="repeat what the record has")
    parser.add_argument("--time", action="store_true", help="time the files beside the model")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing")
    parser.add_argument("--splice", action="store_true", help="only write the page")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the record")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that gets the table")
    args = parser.parse_args()
    if not args.splice and args.files is None:
        parser.error("--files FOLDER is needed")
    names = [row.name for row in rows()]
    if not any(re.fullmatch(args.rows, name) for name in names):
        parser.error(f"no row is named {args.rows}: there are {', '.join(names)}")
    return args


def main() -> None:
    """Run the command line."""
    args = parse_arguments()
    for row in rows():
        if args.splice or not re.fullmatch(args.rows, row.name):
            continue
        known = read(args.json)
        cells = known["rows"].get(row.name, {})
        if args.time:
            runs = runs_of(row, cells, args.files)
            has = known["times"].get(row.name, {}).get("ms", {})
            if any(args.again or " ".join(run) not in has for run in runs):
                times = time_row(row, runs, args.library, args.files, args.repeats)
                keep(args.json, ("times", row.name), times)
            continue
        args.files.mkdir(parents=True, exist_ok=True)
        wanted = [each for each in args.formats if args.again or each not in cells]
        for format, cell in export_cells(row, wanted, args.library, args.files) if wanted else ():
            keep(args.json, ("rows", row.name, format), cell)
    known = read(args.json)
    splice(args.page, proven_table(known, lines()))
    splice(args.page, times_table(known, {row.name: row.dense for row in rows()}))


if __name__ == "__main__":
    main()
