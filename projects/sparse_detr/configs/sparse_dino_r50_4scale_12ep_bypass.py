"""Sparse DETR in DINO; left-out tokens take an affine bypass, which starts as the identity."""

from tokendetr.config import add_bypass

from .sparse_dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

add_bypass(model)

train.output_dir = "./output/sparse_dino_r50_4scale_12ep_bypass"
