"""Training on LVIS v1 with 16 images per step for 12 epochs."""

from .coco_12ep import lr_multiplier, optimizer, train
from .data.lvis_detr import dataloader

NUM_CLASSES = 1203
ITERATIONS_PER_EPOCH = 6261  # of 100,170 images

train.max_iter = 12 * ITERATIONS_PER_EPOCH
train.eval_period = 3 * ITERATIONS_PER_EPOCH
