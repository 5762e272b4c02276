"""Focus-DETR in DINO; left-out tokens take an affine bypass, which starts as the identity."""

from tokendetr.config import add_bypass

from ...common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from .models.focus_detr_r50 import model

add_bypass(model)

train.output_dir = "./output/focus_dino_r50_4scale_12ep_bypass"
