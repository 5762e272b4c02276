"""The same detector with Hourglass's token clustering in place of the transform."""

from token_transforming.config import transform_backbone
from tokendetr.config import zoo

from .models.transform_swin_large_384 import options

dense = zoo.get_config("dino_swin_large_384_5scale_36ep")
dataloader, lr_multiplier, model = dense.dataloader, dense.lr_multiplier, dense.model
optimizer, train = dense.optimizer, dense.train

transform_backbone(model, **{**options, "method": "clustering"})
train.output_dir = "./output/token_transforming_hourglass_dino_swin_large_384_5scale_36ep"
dataloader.evaluator.output_dir = train.output_dir
