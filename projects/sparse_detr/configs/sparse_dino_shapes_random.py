"""Random tokens at the same budget: the baseline of a learned choice."""

from .sparse_dino_shapes import dataloader, lr_multiplier, model, optimizer, train

model.transformer.encoder.sparsifier.selection = "random"

train.output_dir = "./output/sparse_dino_shapes_random"
