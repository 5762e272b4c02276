"""Detectors on the code of the first Deformable DETR: ``main.py``, ``models``, ``util``.

They take lists of images and give dictionaries, and need a compiled operator and weights from the
network. Here they get records and give losses or instances as detectron2's models do.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.structures import Instances
from torch import nn

TOP_LEVEL = ("datasets", "engine", "main", "models", "util")
DETECTIONS = 100


class FirstCodeDetector(nn.Module):
    """A model and its criterion behind detectron2's call."""

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, records: list[dict[str, Any]]) -> Any:
        outputs = self.model([record["image"] / 255 for record in records])
        if not self.training:
            scores = outputs["pred_logits"].sigmoid().flatten(1).topk(DETECTIONS).values
            sizes = [tuple(record["image"].shape[-2:]) for record in records]
            return [
                {"instances": Instances(size, scores=row)}
                for size, row in zip(sizes, scores, strict=True)
            ]
        losses = self.criterion(outputs, [target(record) for record in records])
        weights = self.criterion.weight_dict
        return {name: loss * weights[name] for name, loss in losses.items() if name in weights}


def target(record: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A record's boxes, relative to the image and by their centers, and classes."""
    truth = record["instances"]
    height, width = truth.image_size
    left, top, right, bottom = truth.gt_boxes.tensor.unbind(1)
    boxes = torch.stack((left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)), 1)
    boxes = boxes / (2 * torch.tensor([width, height, width, height]))
    return {"labels": truth.gt_classes, "boxes": boxes}


class OnTheCpu:
    """Instead of the compiled operator's autograd function: the checkout's own plain one."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def apply(
        self, value: Any, shapes: Any, start: Any, locations: Any, weights: Any, step: int
    ) -> torch.Tensor:
        return self.plain(value, shapes, locations, weights)


def without_compiled_operator() -> None:
    """Let code import the compiled operator; calling it fails, as it does on a CPU."""
    sys.modules.setdefault("MultiScaleDeformableAttention", types.ModuleType("not_compiled"))


def build(folder: Path, *arguments: str) -> FirstCodeDetector:
    """Build the detector of a checkout, without pretrained weights.

    Args:
        folder: the checkout.
        arguments: of its ``main.py``.
    """
    for name in [name for name in sys.modules if name.split(".")[0] in TOP_LEVEL]:
        del sys.modules[name]
    without_compiled_operator()
    sys.path.insert(0, str(folder))
    # Three characters of the version are read, as a number: 0.29 would be older than 0.5.
    modern = mock.patch("torchvision.__version__", "0.9")
    try:
        modern.start()
        functions = importlib.import_module("models.ops.functions.ms_deform_attn_func")
        attention = importlib.import_module("models.ops.modules.ms_deform_attn")
        attention.MSDeformAttnFunction = OnTheCpu(functions.ms_deform_attn_core_pytorch)
        # It asks so before it loads ImageNet's weights.
        importlib.import_module("models.backbone").is_main_process = lambda: False
        parser = importlib.import_module("main").get_args_parser()
        args = parser.parse_args(["--device", "cpu", *arguments])
        model, criterion, _ = importlib.import_module("models").build_model(args)
    finally:
        modern.stop()
        sys.path.remove(str(folder))
    return FirstCodeDetector(model, criterion)
