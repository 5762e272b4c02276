"""Backbones under detectron2's names."""

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .fpn import FPN
from .resnet import (
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)
from .swin import SwinTransformer
from .vit import SimpleFeaturePyramid, ViT, get_vit_lr_decay_rate

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "BasicStem",
    "BottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "SimpleFeaturePyramid",
    "SwinTransformer",
    "ViT",
    "build_backbone",
    "build_resnet_backbone",
    "get_vit_lr_decay_rate",
    "make_stage",
]
