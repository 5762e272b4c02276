from ...common.coco_36ep import dataloader, lr_multiplier, optimizer, train
from .models.dynamic_dino_r50 import model

train.output_dir = "./output/dynamic_dino_r50_4scale_36ep"
