"""Training from scratch on the shapes data set: data, optimizer, schedule, run settings.

Also what makes a detector fit 256-pixel images of 12 categories: a narrow ResNet-18 and 3 + 3
layers of width 96.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.solver import WarmupParamScheduler
from detrex.config import get_config
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import DictConfig

from tokendetr.config import resize

from .data.shapes import dataloader

CHANNELS = {"res2": 32, "res3": 64, "res4": 128, "res5": 192}
FEATURES = ["res3", "res4", "res5"]

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

backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=CHANNELS["res2"], norm="BN"),
    stages=blocks,
    out_features=FEATURES,
    freeze_at=0,
)


def fit(model: DictConfig) -> None:
    """Make a detector's model small enough for the shapes data set and two CPU cores, in place."""
    resize(model, width=96, num_heads=3, feedforward_dim=384, num_layers=3)
    model.backbone = backbone
    model.neck.input_shapes = {name: ShapeSpec(channels=CHANNELS[name]) for name in FEATURES}
    model.neck.norm_layer.num_groups = 8
    model.num_classes = 12
    model.select_box_nums_for_evaluation = 100


optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 5e-4
optimizer.betas = (0.9, 0.999)
optimizer.weight_decay = 1e-4

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.05,
    warmup_factor=0.01,
    warmup_method="linear",
)

train = get_config("common/train.py").train
train.init_checkpoint = ""
train.seed = 0
train.max_iter = 4000
train.eval_period = 500
train.log_period = 20
train.checkpointer.period = 250
train.checkpointer.max_to_keep = 2
train.clip_grad.enabled = True
train.clip_grad.params.max_norm = 1.0
train.clip_grad.params.norm_type = 2
train.reference_batch_size = 8
train.device = "cpu"
