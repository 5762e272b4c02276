"""DINO with a narrow Swin Transformer from scratch on the shapes data set."""

from .dino_shapes import dataloader, lr_multiplier, optimizer, train
from .models.dino_swin_shapes import model

train.output_dir = "./output/dino_shapes_swin"
