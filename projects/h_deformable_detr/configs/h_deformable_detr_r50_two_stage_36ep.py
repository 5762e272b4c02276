from ...common.coco_36ep import dataloader, lr_multiplier, optimizer, train
from .models.h_deformable_detr_r50_two_stage import model

train.output_dir = "./output/h_deformable_detr_r50_two_stage_36ep"
