"""DINO Swin-L with fewer tokens in the backbone and in the encoder.

The backbone is reduced by Token Transforming, the encoder is Dynamic DETR's.
"""

from tokendetr.config import sparsify

from ...dynamic_detr.configs.models.dynamic_sparsifier import sparsifier as _sparsifier
from .dino_swin_large_384_4scale_36ep import dataloader, lr_multiplier, model, optimizer, train

sparsify(model, _sparsifier)
train.output_dir = "./output/token_transforming_dynamic_dino_swin_large_384_4scale_36ep"
