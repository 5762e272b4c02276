from ....common.coco_12ep import dataloader, optimizer, train
from ..models.dino_vitdet_large import model
from ..models.vitdet_schedule import schedule

lr_multiplier = schedule(train.max_iter)
train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_large.pth"
train.output_dir = "./output/dino_vitdet_large_4scale_12ep"
