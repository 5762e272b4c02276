from detrex.config import get_config

from ....common.coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train
from ..models.dino_swin_small_224 import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep

train.max_iter = 12 * ITERATIONS_PER_EPOCH
train.init_checkpoint = "/path/to/swin_small_patch4_window7_224.pth"
train.output_dir = "./output/dino_swin_small_224_4scale_12ep"
dataloader.evaluator.output_dir = train.output_dir
model.device = train.device
