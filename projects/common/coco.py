"""Training on COCO with 16 images per step: data, optimizer and run settings.

Modules named after a number of epochs (``coco_12ep``) add the schedule.
"""

from detectron2.config import LazyCall as L
from detrex.config import get_config

from tokendetr.detector import scale_by_name

from .data.coco_detr import dataloader

ITERATIONS_PER_EPOCH = 7500

optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 1e-4
optimizer.betas = (0.9, 0.999)
optimizer.weight_decay = 1e-4
optimizer.params.lr_factor_func = L(scale_by_name)(factors={"backbone": 0.1})

train = get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.eval_period = 5000
train.log_period = 20
train.checkpointer.period = 5000
train.clip_grad.enabled = True
train.clip_grad.params.max_norm = 0.1
train.clip_grad.params.norm_type = 2
train.device = "cuda"
