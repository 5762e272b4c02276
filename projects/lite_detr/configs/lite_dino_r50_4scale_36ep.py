from detrex.config import get_config

from ...common.coco import ITERATIONS_PER_EPOCH
from .lite_dino_r50_4scale_12ep import dataloader, model, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_36ep

train.max_iter = 36 * ITERATIONS_PER_EPOCH
train.output_dir = "./output/lite_dino_r50_4scale_36ep"
dataloader.evaluator.output_dir = train.output_dir
