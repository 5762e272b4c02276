"""Detectors in the repository of Relation-DETR: their configs are modules with a built ``model``.

They take lists of images and of targets, and give weighted losses or dictionaries of detections.
Here they get records and give losses or instances as detectron2's models do.
"""

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from tests.upstream.first_code import forget_modules

# Only its training program and its log need them.
NOT_NEEDED = ("accelerate", "accelerate.logging", "terminaltables")


class RelationCodeDetector(nn.Module):
    """A model of the repository behind detectron2's call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def criterion(self) -> Any:
        """The model's criterion."""
        return self.model.criterion

    def forward(self, records: list[dict[str, Any]]) -> Any:
        images = [record["image"] / 255 for record in records]
        if self.training:
            truths = [record["instances"] for record in records]
            return self.model(
                images, [{"boxes": t.gt_boxes.tensor, "labels": t.gt_classes} for t in truths]
            )
        sizes = [tuple(image.shape[-2:]) for image in images]
        found = self.model(images)
        return [{"instances": instances(*pair)} for pair in zip(found, sizes, strict=True)]


def instances(found: dict[str, torch.Tensor], size: tuple[int, int]) -> Instances:
    """One image's detections, with boxes in pixels."""
    boxes = Boxes(found["boxes"])
    return Instances(size, scores=found["scores"], pred_boxes=boxes, pred_classes=found["labels"])


def build(folder: Path, config: str) -> RelationCodeDetector:
    """Build the detector of a config, without pretrained weights.

    Args:
        folder: the checkout.
        config: the module's name.
    """
    forget_modules()
    for name in NOT_NEEDED:
        sys.modules.setdefault(name, mock.MagicMock())
    sys.path.insert(0, str(folder))
    try:
        utils = importlib.import_module("util.utils")
        with mock.patch.object(utils, "load_checkpoint", return_value=None):
            model = importlib.import_module(config).model
    finally:
        sys.path.remove(str(folder))
    model.eval_transform = model.eval_transform[1:]  # images are of the wanted size
    return RelationCodeDetector(model)
