from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_convnext import model

train.init_checkpoint = "/path/to/convnext_tiny_22k_1k_384.pth"
train.output_dir = "./output/dino_convnext_tiny_384_4scale_12ep"
