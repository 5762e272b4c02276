from ...common.coco_36ep import dataloader, lr_multiplier, optimizer, train
from .models.h_deformable_detr_swin_tiny import model

train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth"
train.output_dir = "./output/h_deformable_detr_swin_tiny_two_stage_36ep"
