from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_internimage import model, size

size(model, depths=(4, 4, 21, 4), channels=112)
model.backbone.post_norm = True

train.init_checkpoint = "/path/to/internimage_b_1k_224.pth"
train.output_dir = "./output/dino_internimage_base_4scale_12ep"
