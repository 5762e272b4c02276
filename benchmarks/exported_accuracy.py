"""AP of detectors in other precisions and, exported, in every runtime; int8 by NNCF.

    python benchmarks/exported_accuracy.py --files FOLDER           # export, quantize, evaluate
    python benchmarks/exported_accuracy.py --files FOLDER --time    # time the files, in turns
    python benchmarks/exported_accuracy.py --config dino_bccd --rows model model_bf16 \\
        train.init_checkpoint=dino_bccd.safetensors                 # precisions on photographs
    python benchmarks/exported_accuracy.py --splice                 # write the page

Needs the data set (DETECTRON2_DATASETS), and for the int8 row `pip install nncf`, which quantizes
the OpenVINO file with images of the training set. Rows go to docs/deploy/accuracy.json one by one;
those that it has are left alone (--again repeats them). Give --time an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from tokendetr.analysis.inputs import write_json
from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.tables import Table, splice
from tokendetr.analysis.timing import timed
from tokendetr.cli.arguments import described_parser, parse_with_overrides
from tokendetr.config import load_config
from tokendetr.deploy import (
    DeployedDetector,
    ExportedModel,
    ExportOptions,
    export,
    open_exported,
)
from tokendetr.deploy.programs import Format, example_inputs, trace
from tokendetr.deploy.runtimes import Runner
from tokendetr.deploy.verification import padded_inputs
from tokendetr.evaluation.run import Evaluation
from tokendetr.layers.cpu import optimize
from tokendetr.layers.precision import Precision, evaluated_in
from tokendetr.predict.predictor import build_model

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs/deploy.md", ROOT / "docs/deploy/accuracy.json"
CANVAS = (256, 256)
CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class Row:
    """A way to run the detector.

    Attributes:
        name: its name in the table.
        precision: precision of its arithmetic.
        runtime: runtime of the file; None for the model itself.
        file: name of the file.
    """

    name: str
    precision: Precision = "float32"
    runtime: str | None = None
    file: str = ""

    def open(self, files: Path, threads: int | None = None) -> Runner:
        """Open the row's file."""
        assert self.runtime is not None
        path = files / self.file
        return open_exported(path, self.runtime, threads=threads, precision=self.precision)


ROWS = {
    "model": Row("the model itself, float32"),
    "model_bf16": Row("the model itself, bfloat16", "bfloat16"),
    "onnx": Row("ONNX Runtime, float32", runtime="onnxruntime", file="float32.onnx"),
    "openvino": Row("OpenVINO, float32", runtime="openvino", file="float32.xml"),
    "openvino_bf16": Row("OpenVINO, bfloat16", "bfloat16", "openvino", "float32.xml"),
    "int8": Row("OpenVINO, int8 by NNCF", runtime="openvino", file="int8.xml"),
}


def export_files(model: nn.Module, files: Path) -> None:
    """Export the model to the formats that are not there."""
    formats: tuple[Format, ...] = ("onnx", "openvino")
    missing = [each for each in formats if not (files / ROWS[each].file).exists()]
    if not missing:
        return
    program = trace(DeployedDetector(model), CANVAS)
    for format in missing:
        options = ExportOptions(format, CANVAS)
        export(model, files / ROWS[format].file, options, program=program)


def quantize(cfg: DictConfig, source: Path, target: Path) -> dict[str, Any]:
    """Quantize an OpenVINO file after training, and return how."""
    import nncf
    import openvino

    node = deepcopy(cfg.dataloader.test)
    node.dataset.names = cfg.dataloader.train.dataset.names
    records = (record for batch in instantiate(node) for record in batch)
    images = [record["image"].float() for record in islice(records, CALIBRATION_IMAGES)]
    inputs = [padded_inputs([image], CANVAS) for image in images]
    calibration = nncf.Dataset([[each.numpy() for each in pair] for pair in inputs])
    model = openvino.Core().read_model(str(source))
    quantized = nncf.quantize(
        model,
        calibration,
        subset_size=len(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
    )
    openvino.save_model(quantized, str(target), compress_to_fp16=False)
    return {"nncf": version("nncf"), "calibration_images": len(inputs)}


def evaluated(
    row: Row, cfg: DictConfig, model: nn.Module, files: Path | None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return what a row evaluates, and how its file was made."""
    if row.runtime is None:
        return model, {}
    assert files is not None
    files.mkdir(parents=True, exist_ok=True)
    export_files(model, files)
    facts: dict[str, Any] = {}
    if row is ROWS["int8"]:
        facts = quantize(cfg, files / ROWS["openvino"].file, files / row.file)
    return ExportedModel(row.open(files), CANVAS, padding=True).eval(), facts


def evaluate(args: argparse.Namespace, cfg: DictConfig, model: nn.Module) -> None:
    """Add the rows that the record lacks."""
    known = read(args.json)["configs"].get(args.config, {})
    for name in [each for each in args.rows if args.again or each not in known]:
        row = ROWS[name]
        judged, facts = evaluated(row, cfg, model, args.files)
        # An exported file brings its precision along.
        precision = row.precision if row.runtime is None else "float32"
        ap = float(Evaluation(cfg, judged, precision=precision)()["bbox"]["AP"])
        keep(args.json, args.config, name, {"ap": ap, **facts})


def take_times(args: argparse.Namespace, model: nn.Module) -> None:
    """Time the model and the files of the record, in turns."""
    inputs, threads = example_inputs(CANVAS), torch.get_num_threads()
    known = read(args.json)["configs"][args.config]
    runs: dict[str, Callable[[], object]] = {}
    for name in known:
        row = ROWS[name]
        if row.runtime is None:
            runs[name] = partial(run_model, model, row.precision, inputs[0][0])
        else:
            runs[name] = partial(row.open(args.files, threads), *inputs)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    with optimize(model), torch.no_grad():
        for turn in range(3 + args.repeats):
            for name, run in runs.items():
                seconds = timed(run, torch.device("cpu"))
                if turn >= 3:  # the first ones warm up
                    samples[name].append(1e3 * seconds)
    for name, times in samples.items():
        facts = {"ms": round(statistics.median(times), 1), "threads": threads}
        keep(args.json, args.config, name, known[name] | facts | {"load": os.getloadavg()[0]})


def run_model(model: nn.Module, precision: Precision, image: Tensor) -> None:
    """Run the model itself on one image."""
    with evaluated_in(precision, model):
        model([{"image": image}])


def read(path: Path) -> dict[str, Any]:
    """Return the record, empty if there is none."""
    return json.loads(path.read_text()) if path.exists() else {"configs": {}}


def keep(path: Path, config: str, row: str, facts: dict[str, Any]) -> None:
    """Put a row into the record."""
    known = read(path)
    known["configs"].setdefault(config, {})[row] = facts
    known["machine"] = machine()
    known["date"] = time.strftime("%Y-%m-%d")
    write_json(known, str(path))
    print(f"{config} {row}: {facts}", flush=True)


def table(known: dict[str, Any]) -> Table:
    """Return the rows as a table."""
    lines = [
        [config, ROWS[row].name, f"{facts['ap']:.2f}", facts.get("ms")]
        for config, rows in known["configs"].items()
        for row, facts in sorted(rows.items(), key=lambda each: [*ROWS].index(each[0]))
    ]
    notes = [
        f"int8 of `{config}`: NNCF {rows['int8']['nncf']}, calibrated on "
        f"{rows['int8']['calibration_images']} images of the training set."
        for config, rows in known["configs"].items()
        if "int8" in rows
    ]
    notes.append(f"`python benchmarks/exported_accuracy.py`, {known['machine']}, {known['date']}")
    title = "AP on the validation set, and the time of one image (two threads)."
    return Table("export-accuracy", title, ("config", "runs in", "AP", "ms"), lines, notes)


def main() -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("--config", default="dino_shapes", help="name of the config")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--files", type=Path, help="folder of the exported files")
    parser.add_argument("--again", action="store_true", help="evaluate known rows as well")
    parser.add_argument("--time", action="store_true", help="time the files beside the model")
    parser.add_argument("--repeats", type=int, default=20, help="of each timing")
    parser.add_argument("--splice", action="store_true", help="only write the page")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the record")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that gets the table")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="key=value overrides, at the end")
    args = parse_with_overrides(parser, None)
    if not args.splice:
        if args.files is None and any(ROWS[row].runtime for row in args.rows):
            parser.error("--files FOLDER is needed")
        cfg = load_config(args.config, ["train.device=cpu", *args.opts], trained=True)
        model = build_model(cfg).eval()
        if args.time:
            take_times(args, model)
        else:
            evaluate(args, cfg, model)
    splice(args.page, table(read(args.json)))


if __name__ == "__main__":
    main()
