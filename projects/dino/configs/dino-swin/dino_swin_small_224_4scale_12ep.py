from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_swin_small_224 import model

train.init_checkpoint = "/path/to/swin_small_patch4_window7_224.pth"
train.output_dir = "./output/dino_swin_small_224_4scale_12ep"
