"""Repeat the decoder's call of detrex's own detectors, and print by how much predictions differ.

python -m tests.upstream.repeat_decoders dino deformable_detr

With detrex's ``projects`` first on the path. A line per detector: its name, the file of its code,
the largest difference of logits and boxes for the same memory, that for another memory, and the
difference of the best score from the detector's own.
"""

import importlib
import sys

import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from torch import nn

from tests.small_configs import RESNET_CHANNELS, narrow_resnet
from tokendetr.detector.queries import Predictions
from tokendetr.sparsification import DenseTeacher


def build(name: str) -> nn.Module:
    """Build a detector of detrex's with a narrow backbone and few queries."""
    model = importlib.import_module(f"projects.{name}.configs.models.{name}_r50").model
    narrow_resnet(model.backbone)
    model.neck.input_shapes = {
        n: ShapeSpec(channels=RESNET_CHANNELS[n]) for n in model.neck.in_features
    }
    if "num_queries" in model:
        model.num_queries = 30
    if "with_box_refine" in model:
        model.with_box_refine = True  # detrex's H-Deformable DETR needs it
    model.device = "cpu"
    torch.manual_seed(0)
    detector: nn.Module = instantiate(model)
    return detector.eval()


def difference(first: Predictions, second: Predictions) -> float:
    """Return the largest difference of logits and boxes."""
    logits = (first.logits_SBQV - second.logits_SBQV).abs().max()
    return max(float(logits), float((first.boxes_SBQ4 - second.boxes_SBQ4).abs().max()))


@torch.no_grad()
def main(names: list[str]) -> None:
    """Print a line for each detector."""
    records = [
        {"image": 255 * torch.rand(3, *size), "height": size[0], "width": size[1]}
        for size in ((96, 128), (128, 96))
    ]
    for name in names:
        detector = build(name)
        found = DenseTeacher(detector)(records, with_decoding=True)
        call = found.decoding
        assert call is not None
        same = call.repeat(detector, call.memory_BNC)
        other = call.repeat(detector, 2 * call.memory_BNC)
        differences = (difference(call.predictions, again) for again in (same, other))
        scores = call.predictions.logits_SBQV[-1].sigmoid().flatten(1).amax(1)
        own = torch.stack([found["instances"].scores.max() for found in detector(records)])
        differences = (*differences, float((scores - own).abs().max()))
        file = sys.modules[type(detector).__module__].__file__
        print(name, file, *(f"{value:.3g}" for value in differences), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
