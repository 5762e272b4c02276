"""The small ViT DINO of the shapes data set with fewer tokens in its backbone, from its dense
weights and without training."""

from token_transforming.config import transform_backbone

from ...dino.configs.dino_shapes_vit import dataloader, lr_multiplier, model, optimizer, train

transform_backbone(model, layers=(0, 2, 4), keep_ratio=0.75, selection="distinct")

train.init_checkpoint = "projects/dino/checkpoints/dino_shapes_vit.safetensors"
train.output_dir = "./output/token_transforming_dino_shapes_vit"
train.max_iter = 600
