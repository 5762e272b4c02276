from detrex.config import get_config

from ...common.coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train
from .models.focus_dino_r101 import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep

train.max_iter = 12 * ITERATIONS_PER_EPOCH
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
train.output_dir = "./output/focus_dino_r101_4scale_12ep"
dataloader.evaluator.output_dir = train.output_dir
dataloader.train.dataset.filter_empty = True
model.device = train.device
