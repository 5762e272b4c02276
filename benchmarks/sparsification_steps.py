"""The steps of the study of sparsification, and a detector as each of them needs it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from tokendetr.predict import Predictor
from tokendetr.sparsification import Budget, Targets, sparse_model

STEPS = {
    "random": "random tokens, no bypass",
    "random+bypass": "random tokens, bypass in every layer",
    "scores": "(a) scores fitted, no bypass",
    "last": "(b) scores and bypass at the end of the encoder",
    "every": "(b) scores and bypass in every layer",
    "mass": "the same, budgets by score mass",
    "context": "(b) scores and bypass with context in every layer",
    "distilled": "(c) the latter, then encoder, maps and scores distilled from the memory",
    "outputs": "(c) the same, from memory and outputs",
    "outputs, longer": "(c) the same, for 1000 instead of 400 iterations",
    "context, longer": "(c) with context, from memory and outputs, for 1000 iterations",
}
CONTEXT = ("context", "context, longer")
"""Steps whose bypass lets tokens take in their surroundings."""


class Distillation(NamedTuple):
    """What a step that distills compares, and for how many iterations."""

    targets: Targets
    iterations: int = 400


DISTILLED = {
    "distilled": Distillation("memory"),
    "outputs": Distillation("both"),
    "outputs, longer": Distillation("both", 1000),
    "context, longer": Distillation("both", 1000),
}
LABELED = {
    "labels": "(d) the bypass in every layer, then trained with labels",
    "labels, no bypass": "the same training, no bypass",
    "labels, dense": "the same training of the dense detector",
}

RATIOS = (0.5, 0.3, 0.2, 0.1, 0.05)
FEWER_RATIOS = {
    "random": (0.5, 0.3, 0.1),
    "random+bypass": (0.5, 0.3, 0.1),
    "mass": (0.3, 0.2, 0.1),
}
"""Ratios of rows that are not measured at all of a plan's."""


class Plan(NamedTuple):
    """What is measured of a detector."""

    seeds: Sequence[int] = (0, 1, 2)
    steps: Sequence[str] = tuple(STEPS)
    ratios: Sequence[float] = RATIOS

    def ratios_of(self, step: str) -> list[float]:
        """Return the keep ratios at which a step is measured."""
        return [ratio for ratio in self.ratios if ratio in FEWER_RATIOS.get(step, self.ratios)]


OTHER_DETECTORS = {
    "deformable_detr_shapes": "Deformable DETR, two stages",
    "h_deformable_detr_shapes": "H-Deformable DETR, two stages",
    "dab_deformable_detr_shapes": "DAB-Deformable DETR",
    "dn_deformable_detr_shapes": "DN-Deformable DETR",
}
"""Detectors that the method is shown on beside DINO, in one table."""

_SHORT = Plan((0,), ("scores", "every", "context", "outputs"), RATIOS[:-1])


def plan_of(config: str) -> Plan:
    """Return what is measured of a config."""
    return _SHORT if config in OTHER_DETECTORS else Plan()


def build(
    cfg: DictConfig, budget: Budget = "ratio", *, context: bool = False
) -> tuple[Predictor, nn.Module]:
    """Return the dense detector and its sparse twin."""
    predictor = Predictor.from_config(cfg)
    torch.manual_seed(0)
    model = sparse_model(cfg.model, "sparse", 0.3, budget, context=context)
    student: nn.Module = instantiate(model)
    student.load_state_dict(predictor.model.state_dict(), strict=False)
    return predictor, student.eval()


@contextmanager
def changed(student: nn.Module, step: str) -> Iterator[Any]:
    """Make a fitted student what a step is about, inside the ``with`` block."""
    sparsifier = student.transformer.encoder.sparsifier  # type: ignore[union-attr]
    bypass, selection, budget = sparsifier.bypass, sparsifier.selection, sparsifier.mass_budget
    try:
        if step != "mass":
            sparsifier.mass_budget = None
        if step.startswith("random"):
            sparsifier.selection = "random"
        if step in ("random", "scores"):
            sparsifier.bypass = None
        elif step == "last":
            sparsifier.bypass = copy.deepcopy(bypass)
            with torch.no_grad():
                sparsifier.bypass.weight[:-1] = 0
                sparsifier.bypass.bias[:-1] = 0
        yield sparsifier
    finally:
        sparsifier.bypass, sparsifier.selection = bypass, selection
        sparsifier.mass_budget = budget
