from ...common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from .models.h_deformable_detr_swin_large import model

train.init_checkpoint = "/path/to/swin_large_patch4_window7_224_22k.pth"
train.output_dir = "./output/h_deformable_detr_swin_large_two_stage_12ep"
