from ....common.lvis_12ep import NUM_CLASSES, dataloader, lr_multiplier, optimizer, train
from ..models.dino_r50 import model

model.num_classes = NUM_CLASSES
train.output_dir = "./output/dino_r50_4scale_lvis_12ep"
