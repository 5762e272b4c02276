from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_swin_large_224 import model

train.init_checkpoint = "/path/to/swin_large_patch4_window7_224_22kto1k.pth"
train.output_dir = "./output/dino_swin_large_224_4scale_12ep"
