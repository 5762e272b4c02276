from ....common.coco_24ep import dataloader, lr_multiplier, optimizer, train
from ..models.focus_detr_r50 import model

model.position_embedding.temperature = 20
model.position_embedding.offset = 0.0

train.output_dir = "./output/focus_detr_r50_4scale_24ep"
