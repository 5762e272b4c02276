"""Models and their parts under detectron2's names."""

from detectron2.layers import ShapeSpec

from ._build import META_ARCH_REGISTRY, build_model
from .backbone import (
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    SimpleFeaturePyramid,
    SwinTransformer,
    ViT,
    build_backbone,
    build_resnet_backbone,
    get_vit_lr_decay_rate,
    make_stage,
)
from .postprocessing import detector_postprocess

__all__ = [
    "FPN",
    "META_ARCH_REGISTRY",
    "Backbone",
    "ResNet",
    "ResNetBlockBase",
    "ShapeSpec",
    "SimpleFeaturePyramid",
    "SwinTransformer",
    "ViT",
    "build_backbone",
    "build_model",
    "build_resnet_backbone",
    "detector_postprocess",
    "get_vit_lr_decay_rate",
    "make_stage",
]
