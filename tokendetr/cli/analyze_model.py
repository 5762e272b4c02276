"""Count a model's operations, activations and parameters, or print its structure.

Examples:
    tokendetr analyze-model --config-file dino_r50_4scale_12ep --tasks flop --input-size 800 1066
    tokendetr analyze-model --config-file dino_r50_4scale_12ep --tasks flop parameter --blended
    tokendetr analyze-model --config-file dino_shapes --tasks flop -n 100    # its own test data

A multiply-add counts as one operation (fvcore's convention, as in the papers); the sampling of
deformable attention counts. Weights are random unless train.init_checkpoint=FILE is given.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from detectron2.utils.analysis import parameter_count, parameter_count_table
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from tokendetr.analysis.flops import (
    BLENDED_SIZES,
    FlopReport,
    count_flops,
    mean_report,
    synthetic_inputs,
)
from tokendetr.analysis.inputs import (
    build_measured_model,
    load_measured_config,
    loaded_inputs,
    write_json,
)
from tokendetr.cli.argument_types import non_negative_int, output_file, positive_int
from tokendetr.cli.arguments import add_config_option, described_parser, parse_with_overrides
from tokendetr.cli.program import program
from tokendetr.io.progress import Progress

TASKS = ("flop", "activation", "parameter", "structure")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = described_parser(__doc__)
    add_config_option(parser, trained=True)
    parser.add_argument("--tasks", choices=TASKS, nargs="+", required=True, help="what to report")
    parser.add_argument(
        "-n", "--num-inputs", type=positive_int, default=100, help="test images to average over"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--input-size",
        type=positive_int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="one synthetic image of this size instead of test images",
    )
    size.add_argument(
        "--blended",
        action="store_true",
        help="two synthetic images whose weighted mean stands for COCO val in the papers: "
        + ", ".join(f"{weight} of {h}x{w}" for weight, (h, w) in BLENDED_SIZES),
    )
    parser.add_argument(
        "--compute",
        action=argparse.BooleanOptionalAction,
        help="compute the forward pass, for models whose work depends on an image's content "
        "(default: for test images, not for synthetic ones)",
    )
    parser.add_argument(
        "--depth", type=non_negative_int, default=3, help="module levels in the tables"
    )
    parser.add_argument(
        "--json",
        type=output_file,
        nargs="?",
        const="-",
        metavar="FILE",
        help="write JSON to FILE, or to stdout if none is given, instead of tables",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="key=value overrides of the config, at the end"
    )
    return parse_with_overrides(parser, arguments)


def count(args: argparse.Namespace, cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Count operations and activations for the requested inputs.

    Returns:
        ``report`` (the mean), and ``inputs``: size, weight and GFLOPs of each image.
    """
    weights: list[float] | None = None
    if args.input_size:
        total, batches = 1, iter([synthetic_inputs(*args.input_size)])
    elif args.blended:
        weights = [weight for weight, _ in BLENDED_SIZES]
        total, batches = len(weights), (synthetic_inputs(*size) for _, size in BLENDED_SIZES)
    else:
        total, batches = args.num_inputs, loaded_inputs(cfg, args.num_inputs)
    is_synthetic = bool(args.input_size or args.blended)
    compute = not is_synthetic if args.compute is None else args.compute
    reports: list[FlopReport] = []
    inputs = []
    for batch in Progress(batches, total=total, unit="image", desc="counting"):
        reports.append(count_flops(model, batch, arithmetic=compute))
        height, width = batch[0]["image"].shape[1:]
        inputs.append({"height": height, "width": width, "gflops": reports[-1].total / 1e9})
    if not reports:
        raise ValueError("the config's test data has no images")
    for image, weight in zip(inputs, weights or [], strict=False):
        image["weight"] = weight
    return {"report": mean_report(reports, weights), "inputs": inputs}


def giga(table: Any) -> dict[str, float]:
    """Return a mapping with its values in units of 10^9."""
    return {name: value / 1e9 for name, value in table.items()}


def flop_result(counted: dict[str, Any]) -> dict[str, Any]:
    """Return the result of the task "flop"."""
    report: FlopReport = counted["report"]
    return {
        "unit": "GFLOPs, a multiply-add is one",
        "gflops": report.total / 1e9,
        "gflops_std": statistics.pstdev(image["gflops"] for image in counted["inputs"]),
        "inputs": counted["inputs"],
        "parts": giga(report.by_part),
        "operators": giga(report.by_operator),
        "modules": giga(report.by_module),
        "uncounted": dict(report.uncounted),
    }


def activation_result(counted: dict[str, Any]) -> dict[str, Any]:
    """Return the result of the task "activation"."""
    activations = {name: number / 1e6 for name, number in counted["report"].activations.items()}
    return {
        "unit": "million output elements of convolutions and products",
        "mega": sum(activations.values()),
        "operators": activations,
    }


def parameter_result(model: nn.Module) -> dict[str, Any]:
    """Return the result of the task "parameter"."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    modules = {name: int(number) for name, number in parameter_count(model).items()}
    return {"total": modules[""], "trainable": trainable, "modules": modules}


def module_table(modules: dict[str, float], depth: int) -> str:
    """Return a table of the modules with operations, down to a depth, with their shares."""
    total = modules[""] or 1.0
    rows = [
        ("  " * name.count(".") + (name or "model"), value, f"{value / total:.1%}")
        for name, value in modules.items()
        if value and name.count(".") < depth
    ]
    return str(tabulate(rows, ("module", "GFLOPs", "share"), floatfmt=".3f"))


def show(result: dict[str, Any], model: nn.Module, depth: int) -> None:
    """Print a result as tables."""
    if "flop" in result:
        flop = result["flop"]
        print(module_table(flop["modules"], depth), end="\n\n")
        parts = [*flop["parts"].items(), ("total", flop["gflops"])]
        print(tabulate(parts, ("part", "GFLOPs"), floatfmt=".3f"), end="\n\n")
        operators = flop["operators"].items()
        print(tabulate(operators, ("operator", "GFLOPs"), floatfmt=".3f"), end="\n\n")
        if flop["uncounted"]:
            calls = ", ".join(
                f"{name} ({times:g} calls)" for name, times in flop["uncounted"].items()
            )
            print(f"Operators without a rule, missing in the total: {calls}")
        print(f"Total GFlops: {flop['gflops']:.1f}±{flop['gflops_std']:.1f}")
    if "activation" in result:
        activation = result["activation"]
        operators = activation["operators"].items()
        print(tabulate(operators, ("operator", "million activations"), floatfmt=".3f"), end="\n\n")
        print(f"Total (Million) Activations: {activation['mega']:.1f}")
    if "parameter" in result:
        print("Parameter Count:\n" + parameter_count_table(model, max_depth=depth))
    if "structure" in result:
        print("Model Structure:\n" + result["structure"])


def analyze(args: argparse.Namespace) -> None:
    """Run the tasks of the command line."""
    cfg = load_measured_config(args.config_file, args.opts)
    model = build_measured_model(cfg, args.opts)
    result: dict[str, Any] = {"config": args.config_file, "overrides": args.opts}
    counted = {}
    if {"flop", "activation"} & set(args.tasks):
        counted = count(args, cfg, model)
    for task in args.tasks:
        if task == "flop":
            result[task] = flop_result(counted)
        elif task == "activation":
            result[task] = activation_result(counted)
        elif task == "parameter":
            result[task] = parameter_result(model)
        else:
            result[task] = str(model)
    if args.json:
        write_json(result, args.json)
    else:
        show(result, model, args.depth)


@program(ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    analyze(args)


if __name__ == "__main__":
    main()
