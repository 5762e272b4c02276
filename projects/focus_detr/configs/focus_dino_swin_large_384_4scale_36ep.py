from detrex.config import get_config

from ...common.coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train
from .models.focus_dino_swin_large_384 import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_36ep

train.max_iter = 36 * ITERATIONS_PER_EPOCH
train.init_checkpoint = "/path/to/swin_large_patch4_window12_384_22k.pth"
train.output_dir = "./output/focus_dino_swin_large_384_4scale_36ep"
dataloader.evaluator.output_dir = train.output_dir
dataloader.train.dataset.filter_empty = True
model.device = train.device
