from detrex.config import get_config

from ...common.coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train
from .models.focus_dino_swin_tiny_224 import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep

train.max_iter = 12 * ITERATIONS_PER_EPOCH
train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth"
train.output_dir = "./output/focus_dino_swin_tiny_224_4scale_12ep"
dataloader.evaluator.output_dir = train.output_dir
dataloader.train.dataset.filter_empty = True
model.device = train.device
