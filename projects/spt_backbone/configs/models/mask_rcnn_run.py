"""Training detectron2's models on COCO as Swin does: 36 epochs, AdamW."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detrex.config import get_config
from fvcore.common.param_scheduler import MultiStepParamScheduler

from spt_backbone.config import watch_selection
from tokendetr.detector import scale_by_name

EPOCHS = 36
ITERATIONS_PER_EPOCH = 7500

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = "RGB"
dataloader.evaluator.output_dir = "${train.output_dir}"
watch_selection(dataloader.evaluator)

optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 1e-4
optimizer.weight_decay = 0.05
optimizer.params.overrides = {"relative_position_bias_table": {"weight_decay": 0.0}}

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[27, 33, 36]),
    warmup_length=1000 / (EPOCHS * ITERATIONS_PER_EPOCH),
    warmup_method="linear",
    warmup_factor=0.001,
)

train = get_config("common/train.py").train
train.max_iter = EPOCHS * ITERATIONS_PER_EPOCH
train.amp.enabled = True
train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth?matching_heuristics=True"
