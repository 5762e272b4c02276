"""Training detectors on SPT for 50 epochs on COCO."""

from ....common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from .run import on_spt

on_spt(dataloader, optimizer, train)
