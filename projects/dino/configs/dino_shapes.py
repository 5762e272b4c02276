"""DINO from scratch on the shapes data set: about an hour on two CPU cores."""

from ...common.shapes import dataloader, lr_multiplier, optimizer, train
from .models.dino_shapes import model

train.output_dir = "./output/dino_shapes"
