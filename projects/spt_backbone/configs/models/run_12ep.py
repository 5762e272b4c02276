"""Training detectors on SPT for 12 epochs on COCO."""

from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from .run import on_spt

on_spt(dataloader, optimizer, train)
