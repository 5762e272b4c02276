"""Training on Pascal VOC 2007 with 16 images per step for 12 epochs."""

from .coco_12ep import lr_multiplier, optimizer, train
from .data.voc2007_detr import dataloader

NUM_CLASSES = 20
ITERATIONS_PER_EPOCH = 314  # of 5,011 images

train.max_iter = 12 * ITERATIONS_PER_EPOCH
train.eval_period = ITERATIONS_PER_EPOCH
train.checkpointer.period = ITERATIONS_PER_EPOCH
