"""Training on COCO for 36 epochs; the learning rate drops to a tenth after 30."""

from detrex.config import get_config

from .coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_36ep
train.max_iter = 36 * ITERATIONS_PER_EPOCH
