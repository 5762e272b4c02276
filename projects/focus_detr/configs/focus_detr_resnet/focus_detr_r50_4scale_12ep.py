from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.focus_detr_r50 import model

train.output_dir = "./output/focus_detr_r50_4scale_12ep"
