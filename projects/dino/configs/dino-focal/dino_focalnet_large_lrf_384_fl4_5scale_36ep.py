from ....common.coco_36ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_focalnet_fl4_5scale import model

model.backbone.drop_path_rate = 0.4

train.init_checkpoint = "/path/to/focalnet_large_lrf_384_fl4.pth"
train.output_dir = "./output/dino_focalnet_large_lrf_384_fl4_5scale_36ep"
