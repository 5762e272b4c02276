"""The run of DINO on Swin-L for 36 epochs."""

from ....common.coco_36ep import dataloader, lr_multiplier, optimizer, train

train.init_checkpoint = "/path/to/swin_large_patch4_window12_384_22kto1k.pth"
