"""Swin-B at 384 pixels like focus_detr_swin_base_384_4scale_36ep; the rate drops at 11/12."""

from ....common.coco_12ep import lr_multiplier
from ....common.coco_36ep import dataloader, optimizer, train
from ..models.focus_detr_swin_base_384 import model

train.init_checkpoint = "/path/to/swin_base_patch4_window12_384_22k.pth"
train.output_dir = "./output/focus_detr_swin_base_224_4scale_36ep"
