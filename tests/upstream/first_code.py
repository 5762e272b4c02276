"""Detectors on the code of the first Deformable DETR: ``main.py``, ``models``, ``util``.

They take lists of images and give dictionaries, and need a compiled operator and weights from the
network. Here they get records and give losses or instances as detectron2's models do.
"""

import contextlib
import importlib
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

TOP_LEVEL = ("configs", "datasets", "engine", "main", "main_open_world", "models", "transforms")
TOP_LEVEL += ("util",)
DETECTIONS = 100
Target = dict[str, torch.Tensor]
SWIN_LOADERS = ("mmcv_custom", "mmdet", "mmdet.utils")  # only a Swin's weights need them
TWO_STAGES = ("--with_box_refine", "--two_stage")  # options of its programs


class FirstCodeDetector(nn.Module):
    """A model and its criterion behind detectron2's call."""

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def predict(self, images: list[torch.Tensor], targets: list[Target] | None) -> Any:
        """The model's outputs; it gets targets in training."""
        return self.model(images)

    def losses(self, outputs: Any, targets: list[Target]) -> dict[str, torch.Tensor]:
        """The criterion's losses without weights."""
        return self.criterion(outputs, targets)

    def forward(self, records: list[dict[str, Any]]) -> Any:
        targets = [target(record) for record in records] if self.training else None
        outputs = self.predict([record["image"] / 255 for record in records], targets)
        if targets is None:
            return [
                {"instances": best(logits_QV, boxes_Q4, tuple(record["image"].shape[-2:]))}
                for logits_QV, boxes_Q4, record in zip(
                    outputs["pred_logits"], outputs["pred_boxes"], records, strict=True
                )
            ]
        losses = self.losses(outputs, targets)
        weights = self.criterion.weight_dict
        return {name: loss * weights[name] for name, loss in losses.items() if name in weights}


class DenoisingDetector(FirstCodeDetector):
    """One whose model denoises targets in training."""

    def predict(self, images: list[torch.Tensor], targets: list[Target] | None) -> Any:
        return self.model(images, targets)


class NoisedDetector(FirstCodeDetector):
    """DN-DETR, which takes the targets and the noise, and says what it noised."""

    def predict(self, images: list[torch.Tensor], targets: list[Target] | None) -> Any:
        if targets is None:
            return self.model(images, dn_args=0)[0]
        # Groups, label noise, box noise and patterns: its defaults.
        return self.model(images, dn_args=(targets, 5, 0.2, 0.4, 0))

    def losses(self, outputs: Any, targets: list[Target]) -> dict[str, torch.Tensor]:
        found, noised = outputs
        return self.criterion(found, targets, noised)


class CascadeDetector(NoisedDetector):
    """Cascade-DETR on DN-DETR's code, which asks for the images' sizes, too."""

    def predict(self, images: list[torch.Tensor], targets: list[Target] | None) -> Any:
        shapes = [torch.tensor(image.shape[-2:]) for image in images]
        sizes = [{"size": shape, "orig_size": shape} for shape in shapes]
        if targets is None:
            return self.model(images, dn_args=(sizes, 0))[0]
        pairs = zip(targets, sizes, strict=True)
        return super().predict(images, [target | size for target, size in pairs])


class DacDetector(DenoisingDetector):
    """DAC-DETR: the criterion wants targets each three times, too."""

    def losses(self, outputs: Any, targets: list[Target]) -> dict[str, torch.Tensor]:
        thrice = [
            {"labels": one["labels"].repeat(3), "boxes": one["boxes"].repeat(3, 1)}
            for one in targets
        ]
        return self.criterion(outputs, targets, thrice)


def best(logits_QV: torch.Tensor, boxes_Q4: torch.Tensor, size: tuple[int, int]) -> Instances:
    """The best pairs of a query and a class, the box (center and size, relative) in pixels."""
    score_K, pair_K = logits_QV.sigmoid().flatten().topk(DETECTIONS)
    query_K = pair_K.div(logits_QV.shape[1], rounding_mode="floor")
    center_K2, extent_K2 = boxes_Q4[query_K].split(2, dim=1)
    edges_K4 = torch.cat((center_K2 - extent_K2 / 2, center_K2 + extent_K2 / 2), dim=1)
    height, width = size
    boxes = Boxes(edges_K4 * edges_K4.new_tensor([width, height, width, height]))
    boxes.clip(size)  # as detectron2's models do
    classes = pair_K % logits_QV.shape[1]
    return Instances(size, scores=score_K, pred_boxes=boxes, pred_classes=classes)


def target(record: dict[str, Any]) -> Target:
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


class InDefaultType:
    """PyTorch for a module that makes constants in float32: they get the default type."""

    def __getattr__(self, name: str) -> Any:
        return torch.get_default_dtype() if name == "float32" else getattr(torch, name)


def without_float32(module: str) -> None:
    """Let a module of the checkout that was built last run in float64, where it mixes types."""
    sys.modules[module].torch = InDefaultType()  # type: ignore[attr-defined]


def forget_modules() -> None:
    """Let the next checkout's modules be imported, whose names are those of the last one's."""
    for name in [name for name in sys.modules if name.split(".")[0] in TOP_LEVEL]:
        del sys.modules[name]


def without_compiled_operator() -> None:
    """Let code import the compiled operator; calling it fails, as it does on a CPU."""
    sys.modules.setdefault("MultiScaleDeformableAttention", types.ModuleType("not_compiled"))


def build(
    folder: Path,
    *arguments: str,
    kind: type[FirstCodeDetector] = FirstCodeDetector,
    program: str = "main",
    package: str = "models",
    builder: str = "build_model",
    config: str = "",
    **options: str,
) -> FirstCodeDetector:
    """Build the detector of a checkout, without pretrained weights.

    Args:
        folder: the checkout.
        arguments: of its program.
        kind: calls its model and criterion.
        program: the module with its command line.
        package: the detector's, with its operator.
        builder: the package's function that builds a model and its criterion.
        config: a file of further arguments in the checkout, where the program takes one.
        options: of the builder.
    """
    forget_modules()
    without_compiled_operator()
    for name in SWIN_LOADERS:
        sys.modules.setdefault(name, mock.MagicMock())
    sys.path.insert(0, str(folder))
    patches = contextlib.ExitStack()
    # Three characters of the version are read, as a number: 0.29 would be older than 0.5.
    patches.enter_context(mock.patch("torchvision.__version__", "0.9"))
    patches.enter_context(mock.patch("torch.load", return_value={}))  # ImageNet's weights
    try:
        functions = importlib.import_module(f"{package}.ops.functions.ms_deform_attn_func")
        attention = importlib.import_module(f"{package}.ops.modules.ms_deform_attn")
        attention.MSDeformAttnFunction = OnTheCpu(functions.ms_deform_attn_core_pytorch)
        # It asks so before it loads ImageNet's weights.
        importlib.import_module(f"{package}.backbone").is_main_process = lambda: False
        parser = importlib.import_module(program).get_args_parser()
        file = ["--config_file", str(folder / config)] if config else []
        args = parser.parse_args(["--device", "cpu", *file, *arguments])
        if config:
            vars(args).update(importlib.import_module("util.slconfig").SLConfig.fromfile(file[1]))
        build_parts = getattr(importlib.import_module(package), builder)
        model, criterion, *_ = build_parts(args, **options)
    finally:
        patches.close()
        sys.path.remove(str(folder))
    return kind(model, criterion)
