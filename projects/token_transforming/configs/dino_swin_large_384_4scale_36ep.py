"""DINO Swin-L (4 scales, 36 epochs) with fewer tokens in its backbone. A checkpoint of the dense
detector evaluates as it is: --eval-only train.init_checkpoint=FILE."""

from token_transforming.config import transform_backbone
from tokendetr.config import zoo

from .models.transform_swin_large_384 import options

dense = zoo.get_config("dino_swin_large_384_4scale_36ep")
dataloader, lr_multiplier, model = dense.dataloader, dense.lr_multiplier, dense.model
optimizer, train = dense.optimizer, dense.train

transform_backbone(model, **options)
train.output_dir = "./output/token_transforming_dino_swin_large_384_4scale_36ep"
dataloader.evaluator.output_dir = train.output_dir
