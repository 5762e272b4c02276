"""Relative error and operations of a reduced vision transformer, for every method of reduction.

python benchmarks/information_kept.py [--model vit] [--images 4] [--keep-ratios 0.9 0.7 0.5]

Errors are those of the class token and of the restored tokens after the last block. The models
(DeiT-S at blocks 3, 6, 9; Swin-T at blocks 4, 6, 8 in stage 3) have random weights; --sharpness
multiplies their weight matrices, because initial weights make all tokens nearly equal and attention
nearly uniform. For detectors trained on shapes use tools/sweep_tokens.py with --features.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from projects.token_transforming.table import gflops
from token_transforming import transform

SIZE = 224
UNGATED: dict[str, Any] = {"threshold": -1.0, "selection": "uniform"}
WAYS: dict[str, dict[str, Any]] = {
    "pruning, evenly spaced": {"method": "pruning", "selection": "uniform"},
    "pruning, class attention": {"method": "pruning", "selection": "class_attention"},
    "pruning, attention": {"method": "pruning"},
    "fusing, class attention": {"method": "fusing", "selection": "class_attention"},
    "merging": {"method": "merging"},
    "transforming": {"method": "transforming"},
    "transforming, least alike": {"method": "transforming", "selection": "distinct"},
    "transforming, evenly spaced, no gate": {"method": "transforming", **UNGATED},
    "transforming, sizes literal": {"method": "transforming", "sizes": "literal"},
    "transforming, not scaled": {"method": "transforming", "scale_attention": False},
}


@dataclass(frozen=True)
class Case:
    """A model and the outputs that are compared.

    Attributes:
        build: makes the model with random weights.
        layers: blocks that reduce.
        options: more arguments of :func:`token_transforming.transform`.
        parts: returns the compared tensors [B, ...] of the model's output, by name.
        has_class_token: the model has a class token, whose attention can select tokens.
    """

    build: Callable[[], nn.Module]
    layers: tuple[int, ...]
    options: dict[str, Any]
    parts: Callable[[Any], dict[str, Tensor]]
    has_class_token: bool


def deit_small() -> nn.Module:
    """Build DeiT-S."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    return ViTModel(config, add_pooling_layer=False)


def swin_tiny() -> nn.Module:
    """Build Swin-T."""
    from detectron2.modeling.backbone import SwinTransformer

    return SwinTransformer()


CASES = {
    "vit": Case(
        deit_small,
        (3, 6, 9),
        {"recover": "end"},
        lambda out: {
            "class token": out.last_hidden_state[:, :1],
            "patches": out.last_hidden_state[:, 1:],
        },
        has_class_token=True,
    ),
    "swin": Case(
        swin_tiny,
        (4, 6, 8),
        {},
        lambda out: {"stage 3": out["p2"], "stage 4": out["p3"]},
        has_class_token=False,
    ),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=tuple(CASES), help="one of the models")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.9, 0.7, 0.5])
    parser.add_argument("--sharpness", type=float, default=4.0)
    return parser.parse_args()


def smooth_images(count: int) -> Tensor:
    """Return seeded images with large and small structures, [count, 3, 224, 224]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 3, SIZE, SIZE)
    for cells in (4, 14, 56):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        images += nn.functional.interpolate(noise, size=(SIZE, SIZE), mode="bilinear")
    return images / 3**0.5


def measure(case: Case, options: argparse.Namespace) -> tuple[list[str], list[list[object]]]:
    """Return the table's columns and rows for one model."""
    torch.manual_seed(0)
    model, images = case.build().eval(), smooth_images(options.images)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(options.sharpness)
    with torch.device("meta"):
        counted = case.build().eval()
    dense = case.parts(model(images))
    columns = [f"{keep:g}: {name}" for keep in options.keep_ratios for name in ("GFLOPs", *dense)]
    ways = {
        name: way
        for name, way in WAYS.items()
        if case.has_class_token or way.get("selection") != "class_attention"
    }
    rows: list[list[object]] = []
    for name, way in ways.items():
        row: list[object] = [name]
        for keep in options.keep_ratios:
            reduction = {"layers": case.layers, "keep_ratio": keep, **case.options, **way}
            transform(model, **reduction)
            transform(counted, **reduction)
            row.append(gflops(counted, (SIZE, SIZE)))
            for part, ours in case.parts(model(images)).items():
                expected = dense[part].flatten(1)
                error = (ours.flatten(1) - expected).norm(dim=1) / expected.norm(dim=1)
                row.append(float(error.mean()))
        rows.append(row)
    return columns, rows


@torch.no_grad()
def main() -> None:
    """Measure, and print a table of each model."""
    options = parse_arguments()
    for name in [options.model] if options.model else list(CASES):
        columns, rows = measure(CASES[name], options)
        print(
            f"{name}, random weights x {options.sharpness:g}, {options.images} images, reduced at "
            f"blocks {', '.join(map(str, CASES[name].layers))}"
        )
        print(tabulate(rows, ("kept at each", *columns), floatfmt=".3f"))


if __name__ == "__main__":
    main()
