from detrex.config import get_config

from ...common.voc2007 import ITERATIONS_PER_EPOCH, NUM_CLASSES, dataloader, optimizer, train
from .models.lite_dino_r50 import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep

model.num_classes = NUM_CLASSES
model.device = train.device
train.max_iter = 12 * ITERATIONS_PER_EPOCH
train.output_dir = "./output/lite_dino_r50_4scale_voc2007_12ep"
