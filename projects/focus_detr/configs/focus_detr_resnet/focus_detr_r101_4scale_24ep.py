from ....common.coco_24ep import dataloader, lr_multiplier, optimizer, train
from ..models.focus_detr_r101 import model

model.position_embedding.temperature = 20
model.position_embedding.offset = 0.0

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
train.output_dir = "./output/focus_detr_r101_4scale_24ep"
