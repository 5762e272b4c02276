from ...common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from .models.dab_deformable_detr_r50 import model

train.seed = 42
train.output_dir = "./output/dab_deformable_detr_r50_50ep"
