"""Inference of SPT's backbone on the CPU: time against select ratio, beside a dense Swin.

The dense one has equal depth. A batch of unequal select ratios is also timed beside one that pads
every image to the largest count.

python benchmarks/spt_inference.py [--parts curve] [--input-size 800 1280] [--depths 2 2 6 2]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import torch
from detectron2.modeling.backbone import SwinTransformer
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from spt_backbone import SPT, SelectionRule, block
from spt_backbone.flops import BackboneShape, backbone_macs
from tokendetr.analysis.inputs import write_json
from tokendetr.analysis.timing import Summary, timed
from tokendetr.cli.argument_types import non_negative_int, positive_int
from tokendetr.layers.cpu import optimize
from tokendetr.ops import extension_available
from tokendetr.tokens import LevelLayout, Pack, topk_valid

RATIOS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
BATCH_RATIOS = (0.1, 0.2, 0.3, 0.6)
"""Select ratios of the images of the unequal batch; their mean is 0.3."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ForcedRatios(SelectionRule):
    """Selects each image's best tokens as if a threshold had left just so many.

    Attributes:
        ratios: part of the tokens, per image.
    """

    ratios: tuple[float, ...] = ()

    def mask(self, probability_BN: Tensor, layout: LevelLayout, *, training: bool) -> Tensor:
        """Return the choice, bool [B, N]."""
        counts = [ceil(ratio * layout.num_tokens) for ratio in self.ratios]
        index_BK, valid_BK = topk_valid(probability_BN, counts)
        chosen_BK = torch.ones_like(index_BK, dtype=torch.bool) if valid_BK is None else valid_BK
        return torch.zeros_like(layout.valid_BN).scatter(1, index_BK, chosen_BK)


class PaddedPack(Pack):
    """Every image gets as many containers as the one that selects most: the usual padding."""

    def __init__(
        self, *, index_P: Tensor, counts: Sequence[int], num_all: int, length: int
    ) -> None:
        super().__init__(index_P=index_P, counts=counts, num_all=num_all, length=length)
        per_image = max(ceil(max(counts) / length), 1)
        self.num_containers = per_image * len(counts)
        pieces = [torch.arange(n) + i * per_image * length for i, n in enumerate(counts)]
        self.slot_P = torch.cat(pieces)


@contextmanager
def padding() -> Iterator[None]:
    """Pack as :class:`PaddedPack` inside the ``with`` block."""
    packed = block.pack_selected

    def pad(*args: Any, **kwargs: Any) -> Pack:
        pack = packed(*args, **kwargs)
        return PaddedPack(
            index_P=pack.index_P, counts=pack.counts, num_all=pack.num_all, length=pack.length
        )

    block.pack_selected = pad  # type: ignore[assignment]
    try:
        yield
    finally:
        block.pack_selected = packed


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add(
        "--input-size", type=positive_int, nargs=2, default=(800, 1280), metavar=("HEIGHT", "WIDTH")
    )
    add("--depths", type=positive_int, nargs=4, default=(2, 2, 6, 2), help="blocks of each stage")
    add("--threads", type=positive_int, default=2, help="CPU threads of PyTorch")
    add("--repeats", type=positive_int, default=5, help="measured turns of each backbone")
    add("--warmup", type=non_negative_int, default=1, help="turns before that are not measured")
    add("--parts", nargs="+", default=("curve", "batch"), choices=("curve", "batch"))
    add("--json", metavar="FILE", help="also write the figures to FILE; - for stdout alone")
    options = parser.parse_args()
    if not extension_available():
        parser.error("the extension is not built: run `make build`")
    return options


def build(depths: Sequence[int], ratios: tuple[float, ...] | None) -> nn.Module:
    """Build a backbone with seeded weights: dense Swin for None, else SPT with forced ratios."""
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"depths": tuple(depths), "out_indices": (1, 2, 3)}
    if ratios is None:
        return SwinTransformer(**kwargs).eval()
    backbone = SPT(**kwargs).eval()
    for module in backbone.modules():
        if isinstance(module, block.SelectPackBlock):
            module.options = block.BlockOptions(
                rule=ForcedRatios(ratios=ratios),
                container_length=module.options.container_length,
                position_bias=True,
                ffn_on="all",
            )
    return backbone


def measure(
    steps: dict[str, Callable[[], Any]], *, warmup: int, repeats: int
) -> dict[str, Summary]:
    """Let all take turns, and summarize the seconds of each."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for turn in tqdm(range(warmup + repeats), unit="turn", file=sys.stderr):
        for name, step in steps.items():
            seconds = timed(step, CPU)
            if turn >= warmup:
                samples[name].append(seconds)
    return {name: Summary.of(values) for name, values in samples.items()}


def forward(backbone: nn.Module, images: Tensor, *, padded: bool = False) -> Callable[[], Any]:
    """Return a function that runs a backbone once, with linear layers as in our detectors."""

    def step() -> None:
        with torch.inference_mode(), optimize(backbone):
            if padded:
                with padding():
                    backbone(images)
            else:
                backbone(images)

    return step


def curve(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one image at every select ratio and dense."""
    height, width = options.input_size
    images = torch.randn(1, 3, height, width)
    choices: dict[str, float | None] = {"dense Swin": None}
    choices.update({f"SPT, ratio {ratio:g}": ratio for ratio in RATIOS})
    steps = {
        name: forward(build(options.depths, None if ratio is None else (ratio,)), images)
        for name, ratio in choices.items()
    }
    summaries = measure(steps, warmup=options.warmup, repeats=options.repeats)
    rows = []
    for name, ratio in choices.items():
        shape = BackboneShape(
            96, options.depths, start_stage=None if ratio is None else 3, out_stages=(2, 3, 4)
        )
        macs = backbone_macs(shape, height, width, {3: ratio or 0.0, 4: ratio or 0.0})
        rows.append({"backbone": name, "gflops": macs / 1e9, "seconds": asdict(summaries[name])})
    return rows


def unequal_batch(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure images that select unequal numbers of tokens: packed, padded, dense."""
    images = torch.randn(len(BATCH_RATIOS), 3, *options.input_size)
    spt = build(options.depths, BATCH_RATIOS)
    steps = {
        "dense Swin": forward(build(options.depths, None), images),
        "SPT, padded to the largest count": forward(spt, images, padded=True),
        "SPT, packed": forward(spt, images),
    }
    summaries = measure(steps, warmup=options.warmup, repeats=options.repeats)
    return [{"backbone": name, "seconds": asdict(summaries[name])} for name in steps]


def printed(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a markdown table, times relative to the first."""
    first = rows[0]["seconds"]["median"]
    lines = []
    for row in rows:
        seconds = row["seconds"]
        line: list[Any] = [row["backbone"]]
        if "gflops" in row:
            line.append(f"{row['gflops']:.1f}")
        line += [
            f"{seconds['median']:.3f}",
            f"{seconds['p10']:.3f} to {seconds['p90']:.3f}",
            f"{seconds['median'] / first:.2f}",
        ]
        lines.append(line)
    headers = ["backbone", *(["GFLOPs"] if "gflops" in rows[0] else [])]
    return tabulate(lines, [*headers, "seconds", "p10 to p90", "of dense"], tablefmt="pipe")


def main() -> None:
    """Run the benchmark."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    height, width = options.input_size
    measured = {
        "curve": (curve, f"One image of {height} x {width}, depths {tuple(options.depths)}"),
        "batch": (unequal_batch, f"A batch of select ratios {BATCH_RATIOS}"),
    }
    results = {}
    for part in options.parts:
        run, title = measured[part]
        results[part] = run(options)
        if options.json != "-":
            print(f"{title}:\n\n{printed(results[part])}\n", flush=True)
    if options.json:
        write_json(results, options.json)


if __name__ == "__main__":
    main()
