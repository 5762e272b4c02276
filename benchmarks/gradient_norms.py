"""Norms of gradients by encoder layer, with and without auxiliary losses in the encoder.

    python -m benchmarks.gradient_norms                      # the small detectors of shapes
    python -m benchmarks.gradient_norms --layers 6 --batches 4

Sparse DETR's Figure 9: in detectors without losses in the encoder, little gradient reaches its
first layers. Weights are fresh, as at the start of a training, and the same in all rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from torch import nn

from tokendetr.analysis.tables import Table
from tokendetr.cli.argument_types import positive_int
from tokendetr.config.load import load_config
from tokendetr.config.zoo import get_config_file

SPARSIFIER = "model.transformer.encoder.sparsifier"
ROWS = (
    ("dense", "dino_shapes", ()),
    ("all tokens, losses in the encoder", "sparse_dino_shapes", (f"{SPARSIFIER}.keep_ratio=1.0",)),
    ("30 %, losses in the encoder", "sparse_dino_shapes", (f"{SPARSIFIER}.keep_ratio=0.3",)),
    (
        "30 %, without",
        "sparse_dino_shapes",
        (f"{SPARSIFIER}.keep_ratio=0.3", f"{SPARSIFIER}.auxiliary_heads=False"),
    ),
)


def layer_norms(model: Any, batches: Sequence[Any]) -> list[float]:
    """Return the norm of each encoder layer's gradient, the mean of batches.

    Args:
        model: a detector in training mode.
        batches: lists of annotated records.
    """
    layers: nn.ModuleList = model.transformer.encoder.layers
    norms: list[list[float]] = [[] for _ in layers]
    for batch in batches:
        model.zero_grad(set_to_none=True)
        sum(model(batch).values()).backward()
        for own, layer in zip(norms, layers, strict=True):
            gradients = [p.grad.norm() for p in layer.parameters() if p.grad is not None]
            own.append(float(torch.stack(gradients).norm()))
    return [statistics.mean(own) for own in norms]


def measure(layers: int | None, count: int) -> Table:
    """Measure all rows on the first batches of the training data."""
    rows = []
    for name, config, overrides in ROWS:
        depth = [] if layers is None else [f"model.transformer.encoder.num_layers={layers}"]
        loading = ["dataloader.train.num_workers=0", "dataloader.train.total_batch_size=2"]
        settings = [*overrides, *depth, *loading, "train.device=cpu"]
        cfg = load_config(str(get_config_file(config)), settings)
        torch.manual_seed(0)
        model = instantiate(cfg.model).train()
        stream = iter(instantiate(cfg.dataloader.train))
        norms = layer_norms(model, [next(stream) for _ in range(count)])
        rows.append([name, *(f"{norm:.2f}" for norm in norms)])
    return Table(
        name="gradient_norms",
        title=f"Norm of the gradient of each encoder layer, mean of {count} batches of 2 images",
        columns=("detector", *(f"layer {number}" for number in range(1, len(rows[0])))),
        rows=rows,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--layers", type=positive_int, help="of the encoder (default: the configs')"
    )
    parser.add_argument("--batches", type=positive_int, default=4, help="(default 4)")
    args = parser.parse_args(arguments)
    sys.stdout.write(measure(args.layers, args.batches).markdown())


if __name__ == "__main__":
    main()
