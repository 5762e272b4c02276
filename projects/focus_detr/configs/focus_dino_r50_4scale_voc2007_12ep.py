from ...common.voc2007_12ep import NUM_CLASSES, dataloader, lr_multiplier, optimizer, train
from .models.focus_detr_r50 import model

model.num_classes = NUM_CLASSES
train.output_dir = "./output/focus_dino_r50_4scale_voc2007_12ep"
