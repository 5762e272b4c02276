"""Training on LVIS v1 with 16 images per step. The schedule is the experiment's."""

from ...configs.common.data.lvis_detr import dataloader
from .coco import optimizer, train

NUM_CLASSES = 1203
ITERATIONS_PER_EPOCH = 6261  # of 100,170 images

dataloader.train.num_workers = 16
dataloader.train.total_batch_size = 16  # over all GPUs

train.eval_period = 3 * ITERATIONS_PER_EPOCH
