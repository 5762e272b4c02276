"""Models and their parts under detectron2's names."""

from detectron2.layers import ShapeSpec

from .backbone import (
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    SwinTransformer,
    build_backbone,
    build_resnet_backbone,
    make_stage,
)
from .build import META_ARCH_REGISTRY, build_model
from .postprocessing import detector_postprocess

__all__ = [
    "FPN",
    "META_ARCH_REGISTRY",
    "Backbone",
    "ResNet",
    "ResNetBlockBase",
    "ShapeSpec",
    "SwinTransformer",
    "build_backbone",
    "build_model",
    "build_resnet_backbone",
    "detector_postprocess",
    "make_stage",
]
