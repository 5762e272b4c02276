"""Backbones."""

from detectron2.layers import CNNBlockBase as ResNetBlockBase
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    make_stage,
)
from detrex.modeling.backbone.convnext import ConvNeXt
from detrex.modeling.backbone.timm_backbone import TimmBackbone
from detrex.modeling.backbone.torchvision_backbone import TorchvisionBackbone

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "ConvNeXt",
    "ResNet",
    "ResNetBlockBase",
    "TimmBackbone",
    "TorchvisionBackbone",
    "make_stage",
]
