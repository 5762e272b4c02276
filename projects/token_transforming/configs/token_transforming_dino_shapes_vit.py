"""The small ViT DINO of shapes with fewer tokens in its backbone, without training.

Its weights are the dense detector's.
"""

from token_transforming.config import transform_backbone
from tokendetr.config import checkpoint_file

from ...dino.configs.dino_shapes_vit import dataloader, lr_multiplier, model, optimizer, train

transform_backbone(model, layers=(0, 2, 4), keep_ratio=0.75, selection="distinct")

train.init_checkpoint = checkpoint_file("dino_shapes_vit")
train.output_dir = "./output/token_transforming_dino_shapes_vit"
train.max_iter = 600
