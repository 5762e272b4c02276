from detrex.config import get_config

from ...common.coco import ITERATIONS_PER_EPOCH
from .focus_dino_r50_4scale_12ep import dataloader, model, optimizer, train

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_24ep

model.position_embedding.temperature = 20
model.position_embedding.offset = 0.0
dataloader.train.dataset.filter_empty = True

train.max_iter = 24 * ITERATIONS_PER_EPOCH
train.output_dir = "./output/focus_dino_r50_4scale_24ep"
dataloader.evaluator.output_dir = train.output_dir
