"""DINO with a small plain vision transformer from scratch on the shapes data set."""

from .dino_shapes import dataloader, lr_multiplier, optimizer, train
from .models.dino_vit_shapes import model

train.output_dir = "./output/dino_shapes_vit"
