from ...common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from .models.h_deformable_detr_r50 import model

train.output_dir = "./output/h_deformable_detr_r50_50ep"
