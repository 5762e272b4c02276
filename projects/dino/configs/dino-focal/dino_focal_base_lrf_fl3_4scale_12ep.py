from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_focal import model
from ..models.pyramid import put_backbone, three_stages

model.backbone.depths = (2, 2, 18, 2)
model.backbone.embed_dim = 128
put_backbone(model, model.backbone, three_stages(128))

train.init_checkpoint = "/path/to/focalnet_base_lrf.pth"
train.output_dir = "./output/dino_focal_base_lrf_fl3_4scale_12ep"
