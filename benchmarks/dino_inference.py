"""Inference of DINO-R50-4scale, with and without the kernels, and of Dynamic-DINO, in turns.

The encoder's matrix products alone are timed beside them, as a lower bound of its time.

python benchmarks/dino_inference.py [--input-size 800 1216] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict

import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from tokendetr.analysis.flops import synthetic_inputs
from tokendetr.analysis.inputs import build_measured_model, load_measured_config, write_json
from tokendetr.analysis.timing import Summary, split_time, timed, turn_order
from tokendetr.cli.argument_types import non_negative_int, positive_int
from tokendetr.layers.cpu import optimize
from tokendetr.ops import extension_available, use_reference

DENSE = "projects/dino/configs/dino-resnet/dino_r50_4scale_12ep.py"
DYNAMIC = "projects/dynamic_detr/configs/dynamic_dino_r50_4scale_12ep.py"
PARTS = {
    "backbone": "backbone",
    "neck": "neck",
    "encoder": "transformer.encoder",
    "decoder": "transformer.decoder",
}
CPU = torch.device("cpu")
COLUMNS = (*PARTS, "rest", "total")
Step = Callable[[], dict[str, float]]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add(
        "--input-size", type=positive_int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH")
    )
    add("--threads", type=positive_int, default=2, help="CPU threads of PyTorch")
    add("--repeats", type=positive_int, default=7, help="turns of each model with the kernels")
    add("--reference-repeats", type=positive_int, default=3, help="turns with the grid_sample form")
    add("--warmup", type=non_negative_int, default=1, help="turns before that are not measured")
    add("--dense", default=DENSE, metavar="FILE", help="config of the dense detector")
    add("--dynamic", default=DYNAMIC, metavar="FILE", help="config of the dynamic detector")
    add("--json", metavar="FILE", help="also write the figures to FILE; - for stdout alone")
    options = parser.parse_args()
    if not extension_available():
        parser.error("the extension is not built: run `make build`")
    return options


def build(config_file: str) -> nn.Module:
    """Build a config's detector on the CPU with seeded weights."""
    torch.manual_seed(0)
    overrides = ["train.device=cpu"]
    return build_measured_model(load_measured_config(config_file, overrides))


def inference(model: nn.Module, size: tuple[int, int], *, reference: bool) -> Step:
    """Return a function that detects once and gives the seconds of each part."""
    batch = synthetic_inputs(*size)

    def step() -> dict[str, float]:
        with torch.inference_mode(), use_reference() if reference else nullcontext():
            return split_time(model, lambda: model(batch), CPU, PARTS)

    return step


def matrix_products(model: nn.Module, size: tuple[int, int]) -> Step:
    """Return a function that runs every linear layer of the encoder once.

    It runs them on as many tokens as the dense encoder has.
    """
    encoder = model.get_submodule("transformer.encoder")
    tokens: list[int] = []
    hook = encoder.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["query"].shape[1]), with_kwargs=True
    )
    with torch.inference_mode():
        model(synthetic_inputs(*size))
    hook.remove()
    layers = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    widths = {layer.in_features for layer in layers}
    inputs = {width: torch.randn(1, tokens[0], width) for width in widths}

    def run() -> None:
        with optimize(encoder):
            for layer in layers:
                layer(inputs[layer.in_features])

    def step() -> dict[str, float]:
        with torch.inference_mode():
            return {"encoder": timed(run, CPU)}

    return step


def take_turns(
    contenders: dict[str, tuple[Step, int]], warmup: int
) -> dict[str, dict[str, Summary]]:
    """Measure all contenders, one after the other in every turn, each turn in another order.

    Args:
        contenders: by name, what is measured and how often.
        warmup: turns before, in which only those that take part in every turn run.

    Returns:
        Milliseconds by contender and part.
    """
    turns = max(repeats for _, repeats in contenders.values())
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for turn in tqdm(range(-warmup, turns), desc="measuring"):
        for name in turn_order(list(contenders), turn + warmup):
            step, repeats = contenders[name]
            if turn >= repeats or (turn < 0 and repeats < turns):
                continue
            seconds = step()
            if turn >= 0:
                for part, value in seconds.items():
                    samples[name].setdefault(part, []).append(1e3 * value)
    return {
        name: {part: Summary.of(values) for part, values in parts.items()}
        for name, parts in samples.items()
    }


def ratios(results: dict[str, dict[str, Summary]]) -> dict[str, float]:
    """Compare medians: the figures that the project's goals are about."""
    median = {
        name: {part: summary.median for part, summary in parts.items()}
        for name, parts in results.items()
    }
    return {
        "kernels over grid_sample form, whole model": median["DINO, grid_sample"]["total"]
        / median["DINO"]["total"],
        "dynamic over dense, whole model": median["DINO"]["total"]
        / median["Dynamic-DINO"]["total"],
        "dense encoder over its matrix products": median["DINO"]["encoder"]
        / median["encoder's matrix products"]["encoder"],
    }


def main() -> None:
    """Measure, and print the table."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    size = tuple(options.input_size)
    dense, dynamic = build(options.dense), build(options.dynamic)
    results = take_turns(
        {
            "DINO": (inference(dense, size, reference=False), options.repeats),
            "Dynamic-DINO": (inference(dynamic, size, reference=False), options.repeats),
            "encoder's matrix products": (matrix_products(dense, size), options.repeats),
            "DINO, grid_sample": (
                inference(dense, size, reference=True),
                min(options.reference_repeats, options.repeats),
            ),
        },
        options.warmup,
    )
    compared = ratios(results)
    if options.json:
        figures = {
            name: {part: asdict(summary) for part, summary in parts.items()}
            for name, parts in results.items()
        }
        settings = {"input_size": list(size), "threads": options.threads}
        write_json({**settings, "milliseconds": figures, "ratios": compared}, options.json)
        if options.json == "-":
            return
    rows = []
    for name, parts in results.items():
        spread = f"{parts['total'].p10:.0f} - {parts['total'].p90:.0f}" if "total" in parts else ""
        medians = [parts[part].median if part in parts else None for part in COLUMNS]
        rows.append([name, *medians, spread])
    print(f"{size[0]} x {size[1]}, {options.threads} threads; median ms, total also p10 - p90")
    print(tabulate(rows, ("model", *COLUMNS, "p10 - p90"), floatfmt=".0f"))
    for name, ratio in compared.items():
        print(f"{name}: {ratio:.2f}x")


if __name__ == "__main__":
    main()
