from ....common.coco_36ep import dataloader, lr_multiplier, optimizer, train
from ..models.focus_detr_swin_base_384 import model

train.init_checkpoint = "/path/to/swin_base_patch4_window12_384_22k.pth"
train.output_dir = "./output/focus_detr_swin_base_384_4scale_36ep"
