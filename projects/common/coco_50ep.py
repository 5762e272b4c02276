"""Training on COCO for 50 epochs; the learning rate drops to a tenth after 40."""

from detrex.config import get_config

from .coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_50ep
train.max_iter = 50 * ITERATIONS_PER_EPOCH
