"""The same Deformable DETR (R50) with the same weights, run by others and by us, on the CPU.

    python -m benchmarks.peers --prepare FOLDER       # write the network for ONNX Runtime, OpenVINO
    python -m benchmarks.peers --files FOLDER --json  # measure, record, write docs/performance.md
    python -m benchmarks.peers --splice               # only write docs/performance.md

Hugging Face transformers' model with random weights is converted by
``tokendetr.integrations.from_huggingface``. All take turns on one image that fills its canvas. The
bound of a row is what its matrix products and convolutions would take at the speed that a large
product reaches here in its precision. Give an otherwise idle machine; its load is recorded.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.whole_detectors import PAGE, processor
from sparse_detr import SparseSparsifier
from tokendetr import accelerate
from tokendetr.analysis.flops import count_flops
from tokendetr.analysis.tables import Cell, Table, splice
from tokendetr.analysis.timing import Summary, timed
from tokendetr.config import sparsify, zoo
from tokendetr.integrations import from_huggingface
from tokendetr.io.atomic import write_atomically
from tokendetr.layers.cpu import optimize
from tokendetr.layers.precision import evaluated_in

RESULTS = PAGE.parent / "performance" / "peers.json"
CPU = torch.device("cpu")
PRODUCT = (4096, 1024, 1024)
"""Rows, inner and outer channels of the product whose speed makes the bound."""


@dataclass(frozen=True)
class Contender:
    """One way to run the network.

    Attributes:
        name: in the table.
        precision: that it computes in.
        run: one forward pass; returns the scores of the detections, best first.
        gmacs: multiply-adds of its products and convolutions, in thousands of millions.
    """

    name: str
    precision: str
    run: Callable[[], Tensor]
    gmacs: float


def huggingface_model() -> nn.Module:
    """Return transformers' model with seeded weights that make every head and point differ."""
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        ResNetConfig,
    )

    torch.manual_seed(0)
    backbone = ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    model = DeformableDetrForObjectDetection(
        DeformableDetrConfig(backbone_config=backbone, num_labels=80)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.05)
    return model.eval()


def our_model(theirs: nn.Module, *, keep: float | None = None) -> nn.Module:
    """Return our model with the same weights; ``keep`` makes its encoder Sparse DETR's."""
    from detectron2.config import LazyCall, instantiate

    node = zoo.get_config("deformable_detr_r50_50ep").model
    node.device = "cpu"
    if keep is not None:
        method = LazyCall(SparseSparsifier)(
            keep_ratio=keep, auxiliary_heads=False, projection="own"
        )
        sparsify(node, method)
    model: nn.Module = instantiate(node).eval()
    weights = from_huggingface(theirs.state_dict())
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any("sparsifier" not in name for name in missing):
        raise RuntimeError(f"the weights do not fit: {missing} missing, {unexpected} unexpected")
    return model


def image_3HW(size: Sequence[int]) -> Tensor:
    """Return the image, pixel values 0..255."""
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255


def prepare(folder: Path, size: Sequence[int]) -> None:
    """Export the network for ONNX Runtime and OpenVINO."""
    from tokendetr.deploy.entry import DeployedDetector
    from tokendetr.deploy.programs import trace, write_program

    folder.mkdir(parents=True, exist_ok=True)
    theirs = huggingface_model()
    canvas = (int(size[0]), int(size[1]))
    for name, keep in (("dense", None), ("sparse", 0.3)):
        torch.manual_seed(1)
        entry = DeployedDetector(our_model(theirs, keep=keep), padding=False)
        write_program(trace(entry, canvas), folder / f"{name}.onnx", "onnx")
        print(f"{folder}/{name}.onnx", file=sys.stderr, flush=True)


def _theirs(model: nn.Module, image: Tensor, precision: str) -> Callable[[], Tensor]:
    mean, std = (
        torch.tensor(each)[:, None, None]
        for each in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    )
    pixels = ((image - mean) / std)[None]
    mask = torch.ones(1, *image.shape[1:], dtype=torch.long)

    def run() -> Tensor:
        with evaluated_in(precision, model):
            logits_QV = model(pixel_values=pixels, pixel_mask=mask).logits[0].float()
        return logits_QV.sigmoid().flatten().topk(300).values

    return run


def _ours(model: nn.Module, image: Tensor, precision: str) -> Callable[[], Tensor]:
    optimize(model)
    height, width = image.shape[1:]

    def run() -> Tensor:
        with evaluated_in(precision, model):
            found = model([{"image": image, "height": height, "width": width}])
        scores: Tensor = found[0]["instances"].scores.float()
        return scores

    return run


def _onnxruntime(path: Path, image: Tensor, threads: int) -> Callable[[], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {"images": image[None].numpy(), "sizes": torch.tensor([image.shape[1:]]).numpy()}
    return lambda: torch.from_numpy(session.run(["scores"], feeds)[0])[0]


def _openvino(path: Path, image: Tensor, threads: int, precision: str) -> Callable[[], Tensor]:
    import openvino

    hint = {"float32": "f32", "bf16": "bf16"}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    arguments = [image[None].numpy(), torch.tensor([image.shape[1:]]).numpy()]
    return lambda: torch.from_numpy(model(arguments)["scores"].copy())[0]


def contenders(files: Path | None, size: Sequence[int], threads: int) -> list[Contender]:
    """Build all that can run here."""
    image = image_3HW(size)
    inputs = [{"image": image, "height": int(size[0]), "width": int(size[1])}]
    theirs, quick = huggingface_model(), huggingface_model()
    accelerate(quick)
    torch.manual_seed(1)
    models = {None: our_model(theirs), 0.3: our_model(theirs, keep=0.3)}
    gmacs = {keep: count_flops(model, inputs).total / 1e9 for keep, model in models.items()}
    dense = gmacs[None]
    found = [
        Contender(f"{name}{which}", precision, _theirs(model, image, precision), dense)
        for precision in ("float32", "bf16")
        for name, which, model in (
            ("Hugging Face transformers", "", theirs),
            ("Hugging Face transformers", ", `tokendetr.accelerate`", quick),
        )
    ]
    for name, keep in (("dense", None), ("sparse", 0.3)):
        label = "" if keep is None else ", Sparse DETR .3"
        macs = gmacs[keep]
        if files is not None and (files / f"{name}.onnx").exists():
            onnx = files / f"{name}.onnx"
            found.append(
                Contender(
                    f"ONNX Runtime{label}", "float32", _onnxruntime(onnx, image, threads), macs
                )
            )
            found += [
                Contender(f"OpenVINO{label}", dtype, _openvino(onnx, image, threads, dtype), macs)
                for dtype in ("float32", "bf16")
            ]
        found += [
            Contender(f"tokendetr{label}", dtype, _ours(models[keep], image, dtype), macs)
            for dtype in ("float32", "bf16")
        ]
    return found


def product_speed(precision: str, repeats: int = 9) -> float:
    """Return the speed of a large matrix product in thousands of millions of multiply-adds per
    second, the best of several."""
    rows, inner, outer = PRODUCT
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    layer = nn.Linear(inner, outer, bias=False).to(dtype)
    optimize(layer)
    x = torch.rand(rows, inner).to(dtype)
    return rows * inner * outer / 1e9 / min(timed(lambda: layer(x), CPU) for _ in range(repeats))


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Let all take turns; return the record."""
    load = os.getloadavg()[0]
    if load > args.threads:
        logging.warning("the machine is not idle (load %.1f): times will be too long", load)
    speeds = {precision: product_speed(precision) for precision in ("float32", "bf16")}
    taking_part = contenders(args.files, args.input_size, args.threads)
    samples: list[list[float]] = [[] for _ in taking_part]
    gaps = [0.0] * len(taking_part)
    reference: dict[float, Tensor] = {}
    for turn in range(1 + args.repeats):
        for index, each in enumerate(taking_part):
            scores: list[Tensor] = []
            seconds = timed(lambda each=each, scores=scores: scores.append(each.run()), CPU)
            if turn:  # the first one warms up
                samples[index].append(1e3 * seconds)
            else:
                expected = reference.setdefault(each.gmacs, scores[0])
                best = min(100, len(scores[0]))
                gaps[index] = float((scores[0][:best] - expected[:best]).abs().max())
            print(f"{each.name} {each.precision}: {1e3 * seconds:.0f} ms", file=sys.stderr)
    rows = [
        {
            "name": each.name,
            "precision": each.precision,
            "ms": [round(value, 1) for value in (summary.median, summary.p10, summary.p90)],
            "bound_ms": round(1e3 * each.gmacs / speeds[each.precision], 1),
            "largest_score_difference": gap,
        }
        for each, times, gap in zip(taking_part, samples, gaps, strict=True)
        for summary in [Summary.of(times)]
    ]
    return {
        "rows": rows,
        "command": "python -m benchmarks.peers --files FOLDER --json",
        "size": list(args.input_size),
        "threads": args.threads,
        "repeats": args.repeats,
        "load_before": load,
        "product_gmacs_per_s": {name: round(speed, 1) for name, speed in speeds.items()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{processor()}, torch {torch.__version__}",
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--prepare", type=Path, metavar="FOLDER", help="only export the network there")
    add("--files", type=Path, metavar="FOLDER", help="what --prepare wrote; without: no runtimes")
    add("--input-size", type=int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH"))
    add("--threads", type=int, default=2)
    add("--repeats", type=int, default=3, help="turns (default 3)")
    add("--json", nargs="?", type=Path, const=RESULTS, metavar="FILE", help="record the figures")
    add("--splice", action="store_true", help="only write docs/performance.md")
    args = parser.parse_args(arguments)
    if min(args.threads, args.repeats) < 1:
        parser.error("--threads and --repeats must be at least 1")
    if args.prepare is not None:
        prepare(args.prepare, args.input_size)
        return
    if args.splice:
        splice(PAGE, table(json.loads(RESULTS.read_text())))
        return
    torch.set_num_threads(args.threads)
    recorded = measure(args)
    sys.stdout.write(table(recorded).markdown())
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(str(args.json), (json.dumps(recorded, indent=1) + "\n").encode())
        if args.json == RESULTS:
            splice(PAGE, table(recorded))


if __name__ == "__main__":
    main()
