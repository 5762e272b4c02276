"""DINO for 256-pixel images of 12 categories: a narrow ResNet-18 and 3 + 3 layers of width 96."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock

from tokendetr.detector import layer_weights

from ....common.matching import weights
from .dino_r50 import model

WIDTH, LAYERS = 96, 3
CHANNELS = {"res2": 32, "res3": 64, "res4": 128, "res5": 192}

blocks, channels = [], CHANNELS["res2"]
for name, out_channels in CHANNELS.items():
    stride = 1 if name == "res2" else 2
    blocks.append(
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=2,
            stride_per_block=[stride, 1],
            in_channels=channels,
            out_channels=out_channels,
            norm="BN",
        )
    )
    channels = out_channels

model.backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=CHANNELS["res2"], norm="BN"),
    stages=blocks,
    out_features=["res3", "res4", "res5"],
    freeze_at=0,
)
model.neck.input_shapes = {
    name: ShapeSpec(channels=CHANNELS[name]) for name in ("res3", "res4", "res5")
}
model.neck.out_channels = WIDTH
model.neck.norm_layer.num_groups = 8
model.neck.norm_layer.num_channels = WIDTH
model.position_embedding.num_pos_feats = WIDTH // 2

for part in (model.transformer.encoder, model.transformer.decoder):
    part.embed_dim = WIDTH
    part.num_heads = 3
    part.feedforward_dim = 384
    part.num_layers = LAYERS

model.embed_dim = WIDTH
model.num_classes = 12
model.num_queries = 100
model.select_box_nums_for_evaluation = 100
model.dn_number = 30
model.criterion.weight_dict = layer_weights(
    {**weights, **{f"{name}_dn": weight for name, weight in weights.items()}},
    num_layers=LAYERS,
    suffixes=["_enc"],
)
