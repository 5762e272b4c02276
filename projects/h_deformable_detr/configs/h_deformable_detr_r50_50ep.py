from detrex.config import get_config

from ...common.coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train
from .models.h_deformable_detr_r50 import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_50ep

model.device = train.device
train.max_iter = 50 * ITERATIONS_PER_EPOCH
train.output_dir = "./output/h_deformable_detr_r50_50ep"
dataloader.evaluator.output_dir = train.output_dir
