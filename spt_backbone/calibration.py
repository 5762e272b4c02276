"""Find the evaluation threshold at which a trained SPT selects a given share of the tokens."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spt_backbone.backbone import OUTPUT_NAME, SPT
from tokendetr.layers.modes import evaluating

Batches = Sequence[Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration.

    Attributes:
        threshold: the ``evaluation_threshold``.
        ratio: selected share of the tokens, mean over images, stages and blocks.
        by_stride: the same for each stage, by its tokens' stride in pixels.
        passes: number of passes over the images.
    """

    threshold: float
    ratio: float
    by_stride: dict[int, float]
    passes: int


def find_spt(model: nn.Module) -> SPT:
    """Return the one SPT in a model.

    Raises:
        ValueError: there is none, or several.
    """
    found = [module for module in model.modules() if isinstance(module, SPT)]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} SPT backbones, and needs one")
    return found[0]


def calibrate_threshold(
    model: nn.Module, batches: Batches, ratio: float, *, tolerance: float = 0.005, passes: int = 14
) -> Calibration:
    """Set a model's ``evaluation_threshold`` so that it selects a given share of the tokens.

    A block's selection changes the inputs of later gates, so the share is measured by running the
    model at each threshold. Bisection on the scale of the gates' logits.

    Args:
        model: an observed detector on SPT, whose outputs have ``token_selection``.
        batches: its inputs.
        ratio: wanted share, in (0, 1).
        tolerance: of the share.
        passes: maximum number of passes over the inputs.

    Raises:
        ValueError: a ratio out of range, a model with a keep ratio, or no images.
    """
    backbone = find_spt(model)
    if not 0 < ratio < 1:
        raise ValueError(f"the ratio must be in (0, 1), got {ratio}")
    if backbone.rule.keep_ratio is not None:
        raise ValueError("a model with keep_ratio always selects that share of the tokens")
    low, high = -16.0, 16.0  # logits
    best: Calibration | None = None
    for tried in range(1, passes + 1):
        middle = (low + high) / 2
        threshold = 1 / (1 + math.exp(-middle))
        backbone.set_evaluation_threshold(threshold)
        by_stride = selected_ratios(model, batches)
        found = sum(by_stride.values()) / len(by_stride)
        if best is None or abs(found - ratio) < abs(best.ratio - ratio):
            best = Calibration(threshold, found, by_stride, tried)
        if abs(found - ratio) <= tolerance:
            break
        low, high = (middle, high) if found > ratio else (low, middle)
    assert best is not None
    backbone.set_evaluation_threshold(best.threshold)
    return best


@torch.no_grad()
def selected_ratios(model: nn.Module, batches: Batches) -> dict[int, float]:
    """Return the selected share of the tokens by stride, mean over images and blocks.

    Raises:
        ValueError: the model's outputs have no selection.
    """
    with evaluating(model):
        outputs: Iterable[Mapping[str, Any]] = [out for batch in batches for out in model(batch)]
    ratios: dict[int, list[float]] = {}
    for output in outputs:
        for stride, mask_LHW in output.get(OUTPUT_NAME, {}).items():
            ratios.setdefault(stride, []).append(float(mask_LHW.float().mean()))
    if not ratios:
        raise ValueError(
            "no selections were recorded: give at least one image, and an observed model "
            "(use_spt, tokendetr.config.observed)"
        )
    return {stride: sum(values) / len(values) for stride, values in sorted(ratios.items())}
