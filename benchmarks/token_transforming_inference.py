"""Inference of transformed backbones beside the dense ones, in turns: time and peak memory.

The backbones are DeiT-S at 224 pixels and Swin-L at 1152.

python benchmarks/token_transforming_inference.py [--only deit] [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from projects.token_transforming.table import SWIN_LARGE
from token_transforming import restore, transform
from tokendetr.analysis.inputs import write_json
from tokendetr.analysis.timing import Summary, peak_tensor_bytes, timed
from tokendetr.cli.argument_types import positive_int

CPU = torch.device("cpu")


def deit_small() -> nn.Module:
    """Build DeiT-S with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    return ViTForImageClassification(config)


def swin_large() -> nn.Module:
    """Build Swin-L with random weights."""
    from detectron2.modeling.backbone import SwinTransformer

    return SwinTransformer(**SWIN_LARGE)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "deit": (deit_small, (4, 3, 224, 224), {"layers": (3, 6, 9), "keep_ratio": 0.7}),
    "swin": (swin_large, (1, 3, 1152, 1152), {"layers": (12,), "keep_ratio": 64 / 144}),
}
"""Builder, shape of the images and transform of each model."""
METHODS = ("dense", "transforming", "pruning", "merging")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--only", choices=tuple(MODELS), help="one of the models")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--threads", type=positive_int, default=2, help="CPU threads of PyTorch")
    add("--swin-size", type=positive_int, default=1152, help="side of Swin-L's image")
    add("--repeats", type=positive_int, default=5, help="turns of each contender")
    add("--json", metavar="FILE", help="also write the figures to FILE")
    return parser.parse_args()


def measure(
    name: str, shape: tuple[int, ...], methods: list[str], repeats: int
) -> dict[str, dict[str, Any]]:
    """Let the ways of running one model take turns.

    Returns:
        Milliseconds and mebibytes (the peak of tensors beside the weights) by method.
    """
    build, _, how = MODELS[name]
    torch.manual_seed(0)
    model, images = build().eval(), torch.randn(shape)
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    peaks: dict[str, int] = {}
    for turn in range(-1, repeats):
        for method in methods:
            restore(model)
            if method != "dense":
                transform(model, method=method, **how)  # type: ignore[arg-type]
            with torch.inference_mode():
                if turn < 0:
                    peaks[method] = peak_tensor_bytes(lambda: model(images))
                else:
                    seconds[method].append(1e3 * timed(lambda: model(images), CPU))
    return {
        method: {"milliseconds": asdict(Summary.of(values)), "peak_mib": peaks[method] / 2**20}
        for method, values in seconds.items()
    }


def main() -> None:
    """Measure, and print a table of each model."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    results = {}
    for name in [options.only] if options.only else list(MODELS):
        shape = MODELS[name][1]
        if name == "swin":
            shape = (*shape[:2], options.swin_size, options.swin_size)
        results[name] = figures = measure(name, shape, options.methods, options.repeats)
        first = figures[options.methods[0]]["milliseconds"]["median"]
        rows = [
            [
                method,
                *(one["milliseconds"][key] for key in ("median", "p10", "p90")),
                first / one["milliseconds"]["median"],
                one["peak_mib"],
            ]
            for method, one in figures.items()
        ]
        sizes = " x ".join(map(str, shape))
        print(f"{name}, images {sizes}, {options.threads} threads, {options.repeats} turns")
        headers = ("method", "ms", "p10", "p90", "times as fast", "peak MiB")
        print(tabulate(rows, headers, floatfmt=("", ".0f", ".0f", ".0f", ".2f", ".0f")))
    if options.json:
        write_json({"threads": options.threads, "results": results}, options.json)


if __name__ == "__main__":
    main()
