from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_focalnet import model

train.init_checkpoint = "/path/to/focalnet_large_lrf_384.pth"
train.output_dir = "./output/dino_focalnet_large_lrf_384_4scale_12ep"
