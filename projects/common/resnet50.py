"""ImageNet ResNet-50 with the four levels that the DETR family reads, and what follows it."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detrex.layers import PositionEmbeddingSine
from detrex.modeling.neck import ChannelMapper
from torch.nn import GroupNorm

backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
    stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
    out_features=["res3", "res4", "res5"],
    freeze_at=1,
)

neck = L(ChannelMapper)(
    input_shapes={
        "res3": ShapeSpec(channels=512),
        "res4": ShapeSpec(channels=1024),
        "res5": ShapeSpec(channels=2048),
    },
    in_features=["res3", "res4", "res5"],
    out_channels=256,
    num_outs=4,
    kernel_size=1,
    norm_layer=L(GroupNorm)(num_groups=32, num_channels=256),
)

position_embedding = L(PositionEmbeddingSine)(
    num_pos_feats=128, temperature=10000, normalize=True, offset=-0.5
)

pixel_mean = [123.675, 116.280, 103.530]
pixel_std = [58.395, 57.120, 57.375]
