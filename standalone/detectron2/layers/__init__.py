"""Layers and tensor helpers under detectron2's names."""

from .batch_norm import FrozenBatchNorm2d, get_norm
from .blocks import CNNBlockBase
from .nms import batched_nms, nms
from .roi_align import ROIAlign, roi_align
from .shape_spec import ShapeSpec
from .wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    interpolate,
    move_device_like,
    nonzero_tuple,
)

__all__ = [
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "FrozenBatchNorm2d",
    "Linear",
    "ROIAlign",
    "ShapeSpec",
    "batched_nms",
    "cat",
    "cross_entropy",
    "get_norm",
    "interpolate",
    "move_device_like",
    "nms",
    "nonzero_tuple",
    "roi_align",
]
