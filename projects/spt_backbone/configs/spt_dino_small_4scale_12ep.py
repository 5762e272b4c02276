from detrex.config import get_config

from .models.run import ITERATIONS_PER_EPOCH, dataloader, optimizer, train
from .models.spt_dino_small import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep

model.device = train.device
train.max_iter = 12 * ITERATIONS_PER_EPOCH
train.init_checkpoint = "/path/to/swin_small_patch4_window7_224.pth?matching_heuristics=True"
train.output_dir = "./output/spt_dino_small_4scale_12ep"
dataloader.evaluator.output_dir = train.output_dir
