"""DINO with a small plain vision transformer from scratch on the shapes data set."""

from .dino_shapes import dataloader, lr_multiplier, optimizer, train
from .models.dino_vit_shapes import model

model.device = train.device
train.output_dir = "./output/dino_shapes_vit"
dataloader.evaluator.output_dir = train.output_dir
