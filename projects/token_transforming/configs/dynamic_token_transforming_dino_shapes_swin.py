"""token_transforming_dino_shapes with Dynamic DETR's encoder: two methods by config alone."""

from tokendetr.config import sparsify

from ...dynamic_detr.configs.dynamic_dino_shapes import model as _dynamic
from .token_transforming_dino_shapes import dataloader, lr_multiplier, model, optimizer, train

sparsify(model, _dynamic.transformer.encoder.sparsifier)

train.output_dir = "./output/dynamic_token_transforming_dino_shapes_swin"
