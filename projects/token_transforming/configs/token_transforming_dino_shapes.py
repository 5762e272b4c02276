"""The small Swin DINO of shapes with fewer tokens in its backbone, without training.

Its weights are the dense detector's.
"""

from token_transforming.config import transform_backbone
from tokendetr.config import checkpoint_file

from ...dino.configs.dino_shapes_swin import dataloader, lr_multiplier, model, optimizer, train

# From stage 3 on, as in the paper's detector: what stage 2 loses costs most of the accuracy.
transform_backbone(model, layers=(4, 8), keep_ratio=0.51, selection="distinct")

train.init_checkpoint = checkpoint_file("dino_shapes_swin")
train.output_dir = "./output/token_transforming_dino_shapes"
train.max_iter = 600
