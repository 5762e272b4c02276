from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_focal import model

model.backbone.depths = (2, 2, 18, 2)

train.init_checkpoint = "/path/to/focalnet_small_lrf.pth"
train.output_dir = "./output/dino_focal_small_lrf_fl3_4scale_12ep"
