"""DINO with SPT-T as the backbone and Dynamic DETR's encoder."""

from tokendetr.config import sparsify

from ...dynamic_detr.configs.models.dynamic_sparsifier import sparsifier as _sparsifier
from .spt_dino_tiny_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

sparsify(model, _sparsifier)

train.output_dir = "./output/spt_dynamic_dino_tiny_4scale_12ep"
