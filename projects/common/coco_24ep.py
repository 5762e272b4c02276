"""Training on COCO for 24 epochs; the learning rate drops to a tenth after 20."""

from detrex.config import get_config

from .coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_24ep
train.max_iter = 24 * ITERATIONS_PER_EPOCH
