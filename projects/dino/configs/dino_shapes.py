"""DINO from scratch on the shapes data set: about an hour on two CPU cores."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detrex.config import get_config
from fvcore.common.param_scheduler import CosineParamScheduler

from .models.dino_shapes import model

dataloader = get_config("common/data/shapes.py").dataloader
optimizer = get_config("common/optim.py").AdamW
train = get_config("common/train.py").train

train.init_checkpoint = ""
train.output_dir = "./output/dino_shapes"
train.seed = 0
train.max_iter = 4000
train.eval_period = 500
train.log_period = 20
train.checkpointer.period = 250
train.checkpointer.max_to_keep = 2
train.clip_grad.enabled = True
train.clip_grad.params.max_norm = 1.0
train.clip_grad.params.norm_type = 2
train.device = "cpu"
model.device = train.device

optimizer.lr = 5e-4
optimizer.betas = (0.9, 0.999)
optimizer.weight_decay = 1e-4

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.05,
    warmup_factor=0.01,
    warmup_method="linear",
)

dataloader.train.total_batch_size = 8
train.reference_batch_size = 8
dataloader.train.num_workers = 1
dataloader.test.num_workers = 1
dataloader.evaluator.output_dir = train.output_dir
