"""DINO Swin-L (4 scales, 36 epochs) with fewer tokens in its backbone.

A checkpoint of the dense detector is evaluated without training: ``--eval-only
train.init_checkpoint=FILE``.
"""

from token_transforming.config import transform_backbone

from ...dino.configs.models.dino_swin_large_384 import model
from .models.swin_large_384_36ep import dataloader, lr_multiplier, optimizer, train
from .models.transform_swin_large_384 import options as _options

transform_backbone(model, **_options)
train.output_dir = "./output/token_transforming_dino_swin_large_384_4scale_36ep"
