"""AP of an exported detector on its data set in every runtime, and quantized to int8 by NNCF.

    python benchmarks/exported_accuracy.py --files FOLDER           # export, quantize, evaluate
    python benchmarks/exported_accuracy.py --files FOLDER --time    # time the files, in turns
    python benchmarks/exported_accuracy.py --splice                 # write the page

Needs the data set (DETECTRON2_DATASETS), and for the int8 row `pip install nncf`, which quantizes
the OpenVINO file with images of the training set. Rows go to docs/deploy/accuracy.json one by one;
those that it has are left alone (--again repeats them). Give --time an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from tokendetr.analysis.inputs import write_json
from tokendetr.analysis.tables import Table, splice
from tokendetr.analysis.timing import timed
from tokendetr.config import load_config
from tokendetr.deploy import (
    DeployedDetector,
    ExportedModel,
    ExportOptions,
    export,
    open_exported,
)
from tokendetr.deploy.programs import SUFFIXES, example_inputs, trace
from tokendetr.deploy.proof import padded_inputs
from tokendetr.evaluation.run import Evaluation
from tokendetr.layers.cpu import optimize
from tokendetr.predict.predictor import build_model

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs/deploy.md", ROOT / "docs/deploy/accuracy.json"
CANVAS = (256, 256)
CALIBRATION_IMAGES = 128
ROWS = {
    "onnx": ("onnx", "onnxruntime", "ONNX Runtime, float32"),
    "openvino": ("openvino", "openvino", "OpenVINO, float32"),
    "int8": ("openvino", "openvino", "OpenVINO, int8 by NNCF"),
}
"""Each row's kind of file, what runs it, and its name; that of the model itself is "model"."""


def file_of(files: Path, row: str) -> Path:
    """Return where a row's file lies."""
    return files / f"{row}{SUFFIXES[ROWS[row][0]]}"


def export_files(cfg: DictConfig, model: nn.Module, files: Path) -> None:
    """Export the model to the formats that are not there."""
    missing = [row for row in ("onnx", "openvino") if not file_of(files, row).exists()]
    if not missing:
        return
    program = trace(DeployedDetector(model), CANVAS)
    for row in missing:
        options = ExportOptions(row, CANVAS)
        export(model, file_of(files, row), options, source=cfg.train.output_dir, program=program)


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


def average_precision(cfg: DictConfig, model: nn.Module) -> float:
    """Return the AP (0..100) on the config's test set."""
    return float(Evaluation(cfg, model.eval())()["bbox"]["AP"])


def evaluate(args: argparse.Namespace, cfg: DictConfig, model: nn.Module) -> None:
    """Add what the record lacks."""
    args.files.mkdir(parents=True, exist_ok=True)
    known = read(args.json)["rows"]
    if args.again or "model" not in known:
        keep(args.json, "model", {"ap": average_precision(cfg, model)})
    export_files(cfg, model, args.files)
    for row in [each for each in args.rows if args.again or each not in known]:
        facts: dict[str, Any] = {}
        if row == "int8":
            facts = quantize(cfg, file_of(args.files, "openvino"), file_of(args.files, "int8"))
        runner = open_exported(file_of(args.files, row), ROWS[row][1])
        exported = ExportedModel(runner, CANVAS, padding=True)
        keep(args.json, row, {"ap": average_precision(cfg, exported), **facts})


def take_times(args: argparse.Namespace, model: nn.Module) -> None:
    """Time the model and the files of the record, in turns."""
    inputs, threads = example_inputs(CANVAS), torch.get_num_threads()
    record = [{"image": inputs[0][0]}]
    known = read(args.json)["rows"]
    runs: dict[str, Callable[[], object]] = {"model": lambda: model(record)}
    for row in ROWS:
        if row in known:
            run = open_exported(file_of(args.files, row), ROWS[row][1], threads=threads)
            runs[row] = lambda run=run: run(*inputs)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    with optimize(model), torch.no_grad():
        for turn in range(3 + args.repeats):
            for name, run in runs.items():
                seconds = timed(run, torch.device("cpu"))
                if turn >= 3:  # the first ones warm up
                    samples[name].append(1e3 * seconds)
    for name, times in samples.items():
        facts = {"ms": round(statistics.median(times), 1), "threads": threads}
        keep(args.json, name, known[name] | facts | {"load": os.getloadavg()[0]})


def read(path: Path) -> dict[str, Any]:
    """Return the record, empty if there is none."""
    return json.loads(path.read_text()) if path.exists() else {"rows": {}}


def keep(path: Path, row: str, facts: dict[str, Any]) -> None:
    """Put a row into the record."""
    known = read(path)
    known["rows"][row] = facts
    known["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    known["date"] = time.strftime("%Y-%m-%d")
    write_json(known, str(path))
    print(f"{row}: {facts}", flush=True)


def table(known: dict[str, Any], config: str) -> Table:
    """Return the rows as a table."""
    names = {
        "model": "the model itself, float32",
        **{row: name for row, (*_, name) in ROWS.items()},
    }
    lines = [
        [name, f"{known['rows'][row]['ap']:.2f}", known["rows"][row].get("ms")]
        for row, name in names.items()
        if row in known["rows"]
    ]
    quantized = known["rows"].get("int8")
    notes = []
    if quantized:
        notes.append(
            f"int8: NNCF {quantized['nncf']}, calibrated on {quantized['calibration_images']} "
            "images of the training set."
        )
    notes.append(
        f"`python benchmarks/exported_accuracy.py`, {config}, {known['machine']}, {known['date']}"
    )
    title = f"AP of `{config}` on its validation set, and the time of one image, two threads."
    return Table("export-accuracy", title, ("runs in", "AP", "ms"), lines, notes)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="dino_shapes", help="name of the config")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--files", type=Path, help="folder of the exported files")
    parser.add_argument("--again", action="store_true", help="evaluate known rows as well")
    parser.add_argument("--time", action="store_true", help="time the files beside the model")
    parser.add_argument("--repeats", type=int, default=20, help="of each timing")
    parser.add_argument("--splice", action="store_true", help="only write the page")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the record")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that gets the table")
    args = parser.parse_args()
    if not args.splice:
        if args.files is None:
            parser.error("--files FOLDER is needed")
        cfg = load_config(args.config, ["train.device=cpu"], trained=True)
        model = build_model(cfg)
        if args.time:
            take_times(args, model)
        else:
            evaluate(args, cfg, model)
    splice(args.page, table(read(args.json), args.config))


if __name__ == "__main__":
    main()
