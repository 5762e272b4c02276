from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_focal import model

train.init_checkpoint = "/path/to/focalnet_tiny_lrf.pth"
train.output_dir = "./output/dino_focal_tiny_lrf_fl3_4scale_12ep"
