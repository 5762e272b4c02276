"""Export every detector with every method in every format, and say what works.

    python benchmarks/export_matrix.py --json docs/deploy/matrix.json --page docs/deploy.md
    python benchmarks/export_matrix.py --rows 'dino_shapes.*' --formats onnx --json out.json --time

Rows join those that the JSON file has, so that the matrix can be made in parts. Small detectors run
on 256 x 256 pixels, ResNet-50 on 800 x 1216. Weights are the project's where there are some, else
random. With --time, each file is timed beside the model (on an otherwise idle machine).
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from torch import nn

from tokendetr.analysis.inputs import write_json
from tokendetr.analysis.tables import Table, splice
from tokendetr.config import load_config, sparsify
from tokendetr.deploy import ExportOptions, export, open_exported
from tokendetr.deploy.programs import SUFFIXES, example_inputs
from tokendetr.deploy.runtimes import installed_runtimes
from tokendetr.errors import ExportCheckError, ExportError
from tokendetr.layers.cpu import optimize
from tokendetr.predict.predictor import build_model

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
LARGE_CONFIGS = (
    "dino_r50_4scale_12ep",
    "dynamic_dino_r50_4scale_12ep",
    "deformable_detr_r50_two_stage_50ep",
    "sparse_deformable_detr_r50_two_stage_50ep",
)
BACKBONES = (
    "spt_dino_shapes",
    "token_transforming_dino_shapes_vit",
    "token_transforming_dino_shapes",
)


@dataclass(frozen=True)
class Row:
    """A detector of the matrix.

    Attributes:
        name: of the row.
        config: whose model it is.
        method: config whose sparsifier it gets; "" leaves the model as it is.
        size: height and width in pixels.
    """

    name: str
    config: str
    method: str
    size: tuple[int, int]


def rows() -> list[Row]:
    """Return all rows of the matrix."""
    found = []
    for detector in DETECTORS:
        for method, config in METHODS.items():
            own = f"{method}_dino_shapes" if detector == "dino" and method else f"{detector}_shapes"
            taken = "" if detector == "dino" else config
            found.append(Row(f"{detector}{'_' + method if method else ''}", own, taken, SMALL))
    found += [Row(name, name, "", SMALL) for name in BACKBONES]
    return found + [Row(name, name, "", LARGE) for name in LARGE_CONFIGS]


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
    """Return a row's model, with random weights that differ from query to query if it has none."""
    cfg = load_config(row.config, ["train.device=cpu"], trained=True)
    if not Path(str(cfg.train.init_checkpoint)).is_file():
        cfg.train.init_checkpoint = ""  # weights that are made, not shipped
    if row.method:
        cfg = with_method(cfg, row.method)
    torch.manual_seed(0)
    model = build_model(cfg)
    if not cfg.train.init_checkpoint:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Return the median time of a call after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def exported(
    model: nn.Module, row: Row, path: Path, format: Any, library: str | None
) -> tuple[dict[str, Any], ExportOptions]:
    """Export for images of any size, or else for images that fill the canvas."""
    reason = None
    for padding in (True, False):
        options = ExportOptions(format, row.size, padding=padding)
        try:
            record = export(model, path, options, source=row.config, library=library)
        except ExportError as error:
            if padding and "--no-padding" in str(error):
                reason = str(error)
                continue
            raise
        return {"padding": padding, "why_no_padding": reason, "checks": record["checks"]}, options
    raise AssertionError


def measure(row: Row, format: Any, *, library: str | None, timed: bool) -> dict[str, Any]:
    """Return what one cell of the matrix holds."""
    model = build(row)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{SUFFIXES[format]}"
        began = time.perf_counter()
        try:
            cell, options = exported(model, row, path, format, library)
        except (ExportError, ExportCheckError) as error:
            return {"works": False, "why": str(error).replace(str(path), "the file")}
        cell |= {"works": True, "export_seconds": time.perf_counter() - began}
        if timed:
            inputs = example_inputs(options.size)
            record = [{"image": inputs[0][0]}]
            with optimize(model), torch.no_grad():
                cell["seconds"] = {"eager": seconds(lambda: model(record))}
            for runtime in installed_runtimes(format, library=library):
                runner = open_exported(
                    path, runtime, library=library, threads=torch.get_num_threads()
                )
                cell["seconds"][runtime] = seconds(lambda runner=runner: runner(*inputs))
    return cell


def table(cells: dict[str, dict[str, Any]], setting: dict[str, Any]) -> Table:
    """Return the matrix as a table: one line per row and format."""
    lines: list[list[Any]] = []
    for name, cell in cells.items():
        row, _, format = name.partition(" ")
        if not cell["works"]:
            lines.append([row, format, "no", cell["why"], None, None])
            continue
        images = "any size" if cell["padding"] else "full canvas"
        for runtime, found in cell["checks"].items():
            lines.append(
                [row, format, runtime, images, f"{found['box_px']:.1g}", f"{found['score']:.1g}"]
            )
    return Table(
        "export-matrix",
        "Largest differences from the model on eight images.",
        ("model", "format", "runtime", "images", "boxes, px", "scores"),
        lines,
        [f"`python benchmarks/export_matrix.py`, {setting['machine']}, {setting['date']}"],
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=".*", help="regular expression of rows' names")
    parser.add_argument("--formats", nargs="+", choices=SUFFIXES, default=["pt2", "onnx"])
    parser.add_argument("--library", help="computes the node of onnx-custom")
    parser.add_argument("--time", action="store_true", help="time the files beside the model")
    parser.add_argument("--json", type=Path, required=True, help="file that cells are added to")
    parser.add_argument("--page", type=Path, help="page that gets the table")
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    args = parse_arguments()
    known = json.loads(args.json.read_text()) if args.json.exists() else {"cells": {}}
    setting = {
        "machine": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
    }
    setting |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    chosen = [row for row in rows() if re.fullmatch(args.rows, row.name)]
    for row in chosen:
        for format in args.formats:
            cell = measure(row, format, library=args.library, timed=args.time)
            known["cells"][f"{row.name} {format}"] = cell
            print(f"{row.name} {format}: {json.dumps(cell)}", flush=True)
            write_json({**known, "setting": setting, "command": sys.argv[1:]}, str(args.json))
    if args.page:
        splice(args.page, table(known["cells"], setting))


if __name__ == "__main__":
    main()
