from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_internimage import model

train.init_checkpoint = "/path/to/internimage_t_1k_224.pth"
train.output_dir = "./output/dino_internimage_tiny_4scale_12ep"
