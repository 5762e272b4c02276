"""Measure whole detectors at COCO's size, each method beside its dense twin: time, memory, FLOPs.

    python -m benchmarks.whole_detectors --group resnet   # and --group swin
    python -m benchmarks.whole_detectors --group resnet --dtype bfloat16
    python -m benchmarks.whole_detectors --results docs/performance/NAME.json   # another machine
    python -m benchmarks.whole_detectors --splice         # only write docs/performance.md

Weights are random, since time and operations do not depend on them (except for SPT, which selects
by its scores; its threshold is calibrated to the stated ratio). The detectors of a group are
measured in turns in one run. Memory is the peak of tensors' bytes without the weights.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spt_backbone.calibration import calibrate_threshold
from token_transforming import transform
from tokendetr.analysis.flops import count_flops, synthetic_inputs
from tokendetr.analysis.inputs import build_measured_model, load_measured_config, write_json
from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.tables import Table, splice
from tokendetr.analysis.timing import Summary, peak_tensor_bytes, take_turns
from tokendetr.cli.argument_types import positive_int
from tokendetr.config import add_bypass
from tokendetr.config.zoo import get_config_file

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "performance"
PAGE = ROOT / "docs" / "performance.md"
CPU = torch.device("cpu")
SPT_RATIO = 0.5


@dataclass(frozen=True)
class Contender:
    """A detector that is measured.

    Attributes:
        name: its name in the table.
        config: name of its config.
        group: the detectors of one group are measured in turns.
        change: edits the model's config before the model is built.
        finish: edits the model.
    """

    name: str
    config: str
    group: str
    change: Callable[[Any], Any] = lambda model: model
    finish: Callable[[nn.Module, list[dict[str, Any]]], Any] = lambda model, inputs: model


def _transform(model: nn.Module, inputs: list[dict[str, Any]]) -> None:
    """Keep 25 of a window's 49 tokens from the middle of the Swin's stage 3 on."""
    transform(model.get_submodule("backbone"), layers=(6,), keep_ratio=25 / 49)


def _calibrate(model: nn.Module, inputs: list[dict[str, Any]]) -> None:
    calibrate_threshold(model, [inputs], SPT_RATIO, tolerance=0.02)


def _bypass(keep_ratio: float) -> Callable[[Any], Any]:
    """Return a change that adds the affine bypass and sets the keep ratio."""

    def change(model: Any) -> None:
        add_bypass(model, context=True)
        model.transformer.encoder.sparsifier.keep_ratio = keep_ratio

    return change


CONTENDERS = (
    Contender("DINO, dense", "dino_r50_4scale_12ep", "resnet"),
    Contender("Sparse DETR, .3", "sparse_dino_r50_4scale_12ep", "resnet"),
    *(
        Contender(
            f"Sparse DETR with a bypass, .{tenths}",
            "sparse_dino_r50_4scale_12ep",
            "resnet",
            _bypass(tenths / 10),
        )
        for tenths in (3, 2, 1)
    ),
    Contender("Focus-DETR, .3", "focus_detr_r50_4scale_12ep", "resnet"),
    Contender("Dynamic DETR, .5 .4 .3 .2", "dynamic_dino_r50_4scale_12ep", "resnet"),
    Contender("Lite DETR", "lite_dino_r50_4scale_12ep", "resnet"),
    Contender("DINO Swin-T, dense", "dino_swin_tiny_224_4scale_12ep", "swin"),
    Contender(
        f"SPT-T, {SPT_RATIO:g} of the tokens",
        "spt_dino_tiny_4scale_12ep",
        "swin",
        finish=_calibrate,
    ),
    Contender(
        "Token Transforming, 25 of 49 from block 6",
        "dino_swin_tiny_224_4scale_12ep",
        "swin",
        finish=_transform,
    ),
    Contender("Sparse DETR Swin-T, .3", "sparse_dino_swin_tiny_224_4scale_12ep", "swin"),
)


def build(
    contender: Contender, inputs: list[dict[str, Any]], overrides: Sequence[str]
) -> nn.Module:
    """Build a detector with seeded weights."""
    torch.manual_seed(0)
    cfg = load_measured_config(
        str(get_config_file(contender.config)), ["train.device=cpu", *overrides]
    )
    contender.change(cfg.model)
    model = build_measured_model(cfg)
    with torch.no_grad():
        contender.finish(model, inputs)
    return model


def precision(dtype: str) -> AbstractContextManager[Any]:
    """Return the context manager in which a dtype is measured."""
    return nullcontext() if dtype == "float32" else torch.autocast("cpu", dtype=torch.bfloat16)


@torch.no_grad()
def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the detectors of a group in turns."""
    inputs = synthetic_inputs(*args.input_size)
    group = [each for each in CONTENDERS if each.group == args.group]
    models = {each.name: build(each, inputs, args.opts) for each in group}
    with precision(args.dtype):
        runs = {name: partial(model, inputs) for name, model in models.items()}
        samples, _ = take_turns(runs, CPU, args.repeats)
        peaks = {
            name: peak_tensor_bytes(lambda model=model: model(inputs))
            for name, model in models.items()
        }
    rows = []
    for name, model in models.items():
        chosen_by_content = name.startswith("SPT")
        counted = count_flops(model, inputs, arithmetic=chosen_by_content)
        summary = Summary.of(samples[name])
        rows.append(
            {
                "name": name,
                "ms": [round(value, 1) for value in (summary.median, summary.p10, summary.p90)],
                "MiB": round(peaks[name] / 2**20, 1),
                "gflops": round(counted.total / 1e9, 2),
            }
        )
    return rows


_SWIN_NOTES = (
    "SPT-T has four more blocks than Swin-T in its third stage, as published: the operations of 10 "
    "blocks at half of the tokens are those of 6 dense ones and a little more.",
)


def table(name: str, recorded: dict[str, Any]) -> Table:
    """Return all that is recorded as one table, without detectors that were not measured."""
    rows: list[list[str | None]] = []
    for contender in CONTENDERS:
        found = {
            dtype: {row["name"]: row for row in recorded[f"{contender.group} {dtype}"]["rows"]}
            for dtype in ("float32", "bfloat16")
            if f"{contender.group} {dtype}" in recorded
        }
        if not any(contender.name in rows_of for rows_of in found.values()):
            continue
        cells: list[str | None] = [contender.name, None, None]
        for dtype in ("float32", "bfloat16"):
            one = found.get(dtype, {}).get(contender.name)
            if one is None:
                cells += [None, None, None]
                continue
            dense = next(iter(found[dtype].values()))
            gflops, ms = one["gflops"], one["ms"][0]
            cells[1:3] = [f"{gflops:.1f}", f"{dense['gflops'] / gflops:.2f}"]
            cells += [f"{ms:.0f}", f"{dense['ms'][0] / ms:.2f}", f"{one['MiB']:.0f}"]
        rows.append(cells)
    runs = list(recorded.values())
    return Table(
        name=name,
        title=f"One image of {' x '.join(map(str, runs[0]['size']))} pixels, random weights, "
        f"{runs[0]['threads']} threads",
        columns=("detector", "GFLOPs", "times fewer than dense")
        + ("ms, float32", "times dense's speed", "MiB of tensors")
        + ("ms, bfloat16", "times dense's speed", "MiB of tensors"),
        rows=rows,
        notes=(
            f"Medians of {min(run['repeats'] for run in runs)} or more turns; bfloat16 by "
            f"autocast; {runs[0]['machine']}.",
            *(_SWIN_NOTES if any(group.startswith("swin") for group in recorded) else ()),
            "; ".join(f"{run['date']}, `{run['command']}`" for run in runs),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--group", choices=sorted({each.group for each in CONTENDERS}), default="resnet")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add(
        "--input-size", type=positive_int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH")
    )
    add("--threads", type=positive_int, default=2)
    add("--repeats", type=positive_int, default=5, help="turns (default 5)")
    add(
        "--results",
        type=Path,
        default=RECORDS / "whole_detectors.json",
        metavar="FILE",
        help="where figures are recorded (default docs/performance/whole_detectors.json); a file "
        "beside it fills the table of its name",
    )
    add("--splice", action="store_true", help="only write docs/performance.md")
    add("opts", nargs="*", help="key=value overrides of all configs")
    args = parser.parse_intermixed_args(arguments)
    recorded = json.loads(args.results.read_text()) if args.results.exists() else {}
    if not args.splice:
        torch.set_num_threads(args.threads)
        command = f"python -m benchmarks.whole_detectors --group {args.group} --dtype {args.dtype}"
        if args.results != parser.get_default("results"):
            command += f" --results {args.results}"
        recorded[f"{args.group} {args.dtype}"] = {
            "rows": measure(args),
            "command": command,
            "size": list(args.input_size),
            "threads": args.threads,
            "repeats": args.repeats,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
        }
        args.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(recorded, str(args.results))
    made = table(args.results.stem, recorded)
    sys.stdout.write(made.markdown())
    if args.results.resolve().parent == RECORDS:
        splice(PAGE, made)


if __name__ == "__main__":
    main()
