"""Weights, images and boxes as formulas, the inputs of the golden numbers in this folder."""

import math
import zlib

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

SIZES = ((320, 416), (288, 384))
BIG_SIZES = ((640, 800), (608, 768))
BOXES_XYXY_PX = ([[10, 20, 90, 120], [100, 30, 240, 180]], [[5, 5, 60, 60]])
CLASSES = ([3, 17], [0])


def parameter_value(name: str, like: Tensor) -> Tensor:
    """Return a sine of the element's index, with a phase from the name, scaled by kind."""
    phase = (zlib.crc32(name.encode()) % 997) * 0.0123
    wave = torch.sin(torch.arange(like.numel(), dtype=torch.float64) * 0.7310585 + phase)
    if name.endswith("running_var"):
        wave = 1.0 + 0.2 * wave
    elif like.dim() > 1:
        wave = wave * math.sqrt(2.0 / like[0].numel())
    elif name.endswith("weight"):
        wave = 1.0 + 0.1 * wave
    else:
        wave = 0.1 * wave
    return wave.view(like.shape).to(like.dtype)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Set every floating-point entry of the state dict in order (of aliases the last one wins)."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(parameter_value(name, tensor))


def image(height: int, width: int, number: int) -> Tensor:
    """Return stripes [3, height, width] in 0..255, different for each channel and number."""
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)[None, :]
    channels = [0.05 * (c + 1) * x + 0.03 * (c + number) * y + number for c in range(3)]
    return torch.stack([127.5 + 127.5 * torch.sin(channel) for channel in channels]).float()


def records(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[dict]:
    """Return the two sample images with their ground truth, as detectron2 inputs."""
    batch = []
    for number, ((height, width), boxes, classes) in enumerate(
        zip(sizes, BOXES_XYXY_PX, CLASSES, strict=True), start=1
    ):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.gt_classes = torch.tensor(classes)
        batch.append(
            {
                "image": image(height, width, number),
                "height": height,
                "width": width,
                "instances": instances,
            }
        )
    return batch
