"""Both at once: fewer tokens in the backbone (Token Transforming) and in the encoder (Dynamic
DETR)."""

from token_transforming.config import transform_backbone
from tokendetr.config import sparsify, zoo

from ...dynamic_detr.configs.models.dynamic_sparsifier import sparsifier
from .models.transform_swin_large_384 import options

dense = zoo.get_config("dino_swin_large_384_4scale_36ep")
dataloader, lr_multiplier, model = dense.dataloader, dense.lr_multiplier, dense.model
optimizer, train = dense.optimizer, dense.train

transform_backbone(model, **options)
sparsify(model, sparsifier)
train.output_dir = "./output/token_transforming_dynamic_dino_swin_large_384_4scale_36ep"
dataloader.evaluator.output_dir = train.output_dir
