from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_convnext import model, size

size(model, depth=27, width=128)

train.init_checkpoint = "/path/to/convnext_base_22k_1k_384.pth"
train.output_dir = "./output/dino_convnext_base_384_4scale_12ep"
