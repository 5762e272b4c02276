from detrex.config import get_config

from .focus_detr_r101_4scale_24ep import dataloader, model, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_3x
train.max_iter = 36 * 7500
train.output_dir = "./output/focus_detr_r101_4scale_36ep"
