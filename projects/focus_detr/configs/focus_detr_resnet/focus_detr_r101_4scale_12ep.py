from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.focus_detr_r101 import model

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
train.output_dir = "./output/focus_detr_r101_4scale_12ep"
