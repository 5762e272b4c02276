from ....common.coco_36ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_swin_large_384_5scale import model

train.init_checkpoint = "/path/to/swin_large_patch4_window12_384_22kto1k.pth"
train.output_dir = "./output/dino_swin_large_384_5scale_36ep"
