from ...common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from .models.lite_dino_r50 import model

train.output_dir = "./output/lite_dino_r50_4scale_12ep"
