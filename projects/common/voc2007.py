"""Training on Pascal VOC 2007 with 16 images per step. The schedule is the experiment's."""

from ...configs.common.data.voc2007_detr import dataloader
from .coco import optimizer, train

NUM_CLASSES = 20
ITERATIONS_PER_EPOCH = 314  # of 5,011 images

dataloader.train.num_workers = 16
dataloader.train.total_batch_size = 16  # over all GPUs

train.eval_period = ITERATIONS_PER_EPOCH
train.checkpointer.period = ITERATIONS_PER_EPOCH
