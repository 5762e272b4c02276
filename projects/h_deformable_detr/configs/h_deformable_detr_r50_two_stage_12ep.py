from detrex.config import get_config

from ...common.coco import ITERATIONS_PER_EPOCH
from .h_deformable_detr_r50_two_stage_50ep import dataloader, model, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep

train.output_dir = "./output/h_deformable_detr_r50_two_stage_12ep"
train.max_iter = 12 * ITERATIONS_PER_EPOCH
dataloader.evaluator.output_dir = train.output_dir
