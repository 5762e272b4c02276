"""Time models of Hugging Face transformers before and after ``tokendetr.accelerate``, on the CPU.

    python -m benchmarks.accelerated                 # measure, record, write the page
    python -m benchmarks.accelerated --models mask2former oneformer
    python -m benchmarks.accelerated --splice        # only write docs/other_libraries.md

The models have their default configs and random weights. Processor seconds of one thread, the best
of several passes of each form in turns, on one random image.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr import accelerate
from tokendetr.analysis.recorded_rows import measured_notes, record_rows
from tokendetr.analysis.tables import Cell, Table, splice
from tokendetr.cli.argument_types import positive_int

PAGE = Path(__file__).resolve().parents[1] / "docs" / "other_libraries.md"
RESULTS = PAGE.parent / "performance" / "accelerated.json"


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: its name in the table.
        model: name of the model's class in transformers; its default config is used.
        size: height and width of the image.
        text: further inputs, [1, number of tokens].
        options: options of the config.
    """

    title: str
    model: str
    size: tuple[int, int] = (800, 1216)
    text: Callable[[], dict[str, Tensor]] = dict
    options: Callable[[], dict[str, Any]] = dict

    def build(self) -> nn.Module:
        """Return the model with seeded random weights."""
        import transformers

        torch.manual_seed(0)
        kind = getattr(transformers, self.model)
        model: nn.Module = kind(kind.config_class(**self.options())).eval()
        return model


def _resnet50() -> dict[str, Any]:
    from transformers import ResNetConfig

    return {"backbone_config": ResNetConfig(out_features=["stage2", "stage3", "stage4"])}


def _prompt() -> dict[str, Tensor]:
    """Return the tokens of "a cat. a dog." for BERT."""
    words = torch.tensor([[101, 1037, 4937, 1012, 1037, 3899, 1012, 102]])
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def _task() -> dict[str, Tensor]:
    return {"task_inputs": torch.arange(77.0)[None]}


FAMILIES = {
    "deformable_detr": Family(
        "Deformable DETR, ResNet-50", "DeformableDetrForObjectDetection", options=_resnet50
    ),
    "grounding_dino": Family(
        "Grounding DINO, Swin-T", "GroundingDinoForObjectDetection", text=_prompt
    ),
    "mask2former": Family("Mask2Former, Swin-T", "Mask2FormerForUniversalSegmentation"),
    "oneformer": Family("OneFormer, Swin-T", "OneFormerForUniversalSegmentation", text=_task),
    "rt_detr": Family("RT-DETR, ResNet-50", "RTDetrForObjectDetection", (640, 640)),
    "d_fine": Family("D-FINE, HGNetV2", "DFineForObjectDetection", (640, 640)),
}


@torch.no_grad()
def measure(family: Family, repeats: int) -> dict[str, float]:
    """Return the seconds of both forms and the largest difference of their 100 best logits."""
    model = family.build()
    image = torch.randn(1, 3, *family.size, generator=torch.Generator().manual_seed(0))
    inputs = {"pixel_values": image, **family.text()}
    seconds: dict[str, list[float]] = {"plain": [], "kernels": []}
    best = {}
    for _ in range(repeats):
        best["plain"] = _pass(model, inputs, seconds["plain"])
        with accelerate(model):
            best["kernels"] = _pass(model, inputs, seconds["kernels"])
    gap = float((best["plain"] - best["kernels"]).abs().max())
    return {**{name: round(min(each), 2) for name, each in seconds.items()}, "difference": gap}


def _pass(model: nn.Module, inputs: dict[str, Tensor], seconds: list[float]) -> Tensor:
    """Run a model, append its processor seconds, and return its best logits."""
    began = time.process_time()
    found = model(**inputs)
    seconds.append(time.process_time() - began)
    logits = found["logits"] if "logits" in found else found["class_queries_logits"]
    # The best alone: random weights rank nearly equal queries by the last bit. Logits, because the
    # best scores of Grounding DINO's random weights are all 1.
    return logits.flatten().topk(100).values


def table(recorded: dict[str, dict[str, Any]]) -> Table:
    """Return the record as a table."""
    rows: list[list[Cell]] = [
        [
            family.title,
            "{} x {}".format(*family.size),
            row["plain"],
            row["kernels"],
            f"{row['plain'] / row['kernels']:.2f}",
            f"{row['difference']:.0e}",
        ]
        for name, family in FAMILIES.items()
        if (row := recorded.get(name)) is not None
    ]
    return Table(
        "accelerated",
        "Default configs of transformers with random weights, one image, one thread."
        if rows
        else "Times were not taken yet.",
        ("model", "image", "before, s", "after, s", "times faster", "best logits differ by"),
        rows,
        ("`python -m benchmarks.accelerated`", *measured_notes(recorded)) if rows else (),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--repeats", type=positive_int, default=2, help="passes of each form")
    parser.add_argument("--splice", action="store_true", help="only write the page")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in () if args.splice else args.models:
        row = measure(FAMILIES[name], args.repeats)
        print(name, row, file=sys.stderr, flush=True)
        record_rows(RESULTS, {name: row}, timed=True)
    splice(PAGE, table(json.loads(RESULTS.read_text()) if RESULTS.exists() else {}))


if __name__ == "__main__":
    main()
