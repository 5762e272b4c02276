"""Parts that detectors are assembled from."""

from detrex.modeling.backbone import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    ConvNeXt,
    ResNet,
    ResNetBlockBase,
    TimmBackbone,
    make_stage,
)
from detrex.modeling.criterion import BaseCriterion, SetCriterion
from detrex.modeling.losses import dice_loss, sigmoid_focal_loss
from detrex.modeling.matcher import HungarianMatcher
from detrex.modeling.neck import ChannelMapper

__all__ = [
    "BaseCriterion",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "ChannelMapper",
    "ConvNeXt",
    "HungarianMatcher",
    "ResNet",
    "ResNetBlockBase",
    "SetCriterion",
    "TimmBackbone",
    "dice_loss",
    "make_stage",
    "sigmoid_focal_loss",
]
