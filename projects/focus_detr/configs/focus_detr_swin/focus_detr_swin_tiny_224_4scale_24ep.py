from ....common.coco_24ep import dataloader, lr_multiplier, optimizer, train
from ..models.focus_detr_swin_tiny_224 import model

train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth"
train.output_dir = "./output/focus_detr_swin_tiny_224_4scale_24ep"
