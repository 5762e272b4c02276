"""Sparse DETR on BCCD; left-out tokens take an affine bypass."""

from tokendetr.config import add_bypass

from .sparse_dino_bccd import dataloader, lr_multiplier, model, optimizer, train

add_bypass(model)

train.output_dir = "./output/sparse_dino_bccd_bypass"
