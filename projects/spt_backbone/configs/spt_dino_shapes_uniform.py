"""spt_dino_shapes, selecting the half of every image's tokens that scores highest."""

from .spt_dino_shapes import dataloader, lr_multiplier, model, optimizer, train

model.backbone.keep_ratio = 0.5

train.output_dir = "./output/spt_dino_shapes_uniform"
