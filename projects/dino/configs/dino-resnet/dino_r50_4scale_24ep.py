from ....common.coco_24ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_r50 import model

# DAB-DETR's position embedding, which the released 24-epoch checkpoint was trained with.
model.position_embedding.temperature = 20
model.position_embedding.offset = 0.0
dataloader.train.dataset.filter_empty = False

train.output_dir = "./output/dino_r50_4scale_24ep"
