from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_internimage import model, size

size(model, depths=(5, 5, 22, 5), channels=160)
model.backbone.post_norm = True
model.backbone.offset_scale = 2.0
model.backbone.drop_path_rate = 0.0

train.init_checkpoint = "/path/to/internimage_l_22kto1k_384.pth"
train.output_dir = "./output/dino_internimage_large_4scale_12ep"
