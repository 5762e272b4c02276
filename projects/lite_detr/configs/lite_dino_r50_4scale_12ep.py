from detrex.config import get_config

from ...common.coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train
from .models.lite_dino_r50 import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep

train.max_iter = 12 * ITERATIONS_PER_EPOCH
train.output_dir = "./output/lite_dino_r50_4scale_12ep"
dataloader.evaluator.output_dir = train.output_dir
model.device = train.device
