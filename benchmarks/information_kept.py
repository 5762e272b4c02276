"""How much of a vision transformer's result is left at equal operations: relative error of the
class token and of the restored patch tokens after the last block, for every way to build W.

python benchmarks/information_kept.py [--images 8] [--keep-ratios 0.9 0.7 0.5] [--sharpness 4]

DeiT-S has random weights here; --sharpness multiplies its weight matrices, because fresh ones make
all tokens nearly alike and all attention even. Detectors trained on shapes: tools/sweep_tokens.py
with --features.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tokendetr  # noqa: F401, I001  (makes detectron2 and detrex importable)
import torch
from tabulate import tabulate
from torch import Tensor, nn

from token_transforming import transform

LAYERS = (3, 6, 9)
WAYS = {
    "pruning, evenly spaced": {"method": "pruning", "selection": "uniform"},
    "pruning, class attention": {"method": "pruning", "selection": "class_attention"},
    "pruning, attention": {"method": "pruning"},
    "fusing": {"method": "fusing", "selection": "class_attention"},
    "merging": {"method": "merging"},
    "transforming": {"method": "transforming"},
    "transforming, sizes literal": {"method": "transforming", "sizes": "literal"},
    "transforming, not scaled": {"method": "transforming", "scale_attention": False},
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=[0.9, 0.7, 0.5])
    parser.add_argument("--sharpness", type=float, default=4.0)
    return parser.parse_args()


def smooth_images(count: int) -> Tensor:
    """Return seeded pictures with large and small structure, [count, 3, 224, 224]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 3, 224, 224)
    for cells in (4, 14, 56):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        images += nn.functional.interpolate(noise, size=(224, 224), mode="bilinear")
    return images / 3**0.5


def deit_small(sharpness: float) -> nn.Module:
    """Build DeiT-S with seeded random weights."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    model = ViTModel(config, add_pooling_layer=False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(sharpness)
    return model.eval()


def main() -> None:
    """Measure and print the table."""
    options = parse_arguments()
    model, images = deit_small(options.sharpness), smooth_images(options.images)
    rows: list[list[object]] = []
    with torch.inference_mode():
        dense = model(images).last_hidden_state
        for name, way in WAYS.items():
            row: list[object] = [name]
            for keep in options.keep_ratios:
                transform(model, layers=LAYERS, keep_ratio=keep, recover="end", **way)  # type: ignore[arg-type]
                error = model(images).last_hidden_state - dense
                for part in (slice(0, 1), slice(1, None)):
                    size = dense[:, part].flatten(1).norm(dim=1)
                    row.append(float((error[:, part].flatten(1).norm(dim=1) / size).mean()))
            rows.append(row)
    columns = [
        f"{keep:g}: {part}" for keep in options.keep_ratios for part in ("class token", "patches")
    ]
    print(
        f"DeiT-S, random weights x {options.sharpness:g}, {options.images} images, after {LAYERS}"
    )
    print(tabulate(rows, ("kept at each", *columns), floatfmt=".3f"))


if __name__ == "__main__":
    main()
