from ....common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_vitdet import model

train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth"
train.output_dir = "./output/dino_vitdet_base_4scale_50ep"
