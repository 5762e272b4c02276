"""Dynamic-DINO on shapes at the paper's ratios: a third of the encoder's queries are kept."""

from .dynamic_dino_shapes import dataloader, lr_multiplier, model, optimizer, train

model.transformer.encoder.sparsifier.keep_ratios = (0.5, 0.4, 0.3, 0.2)

train.output_dir = "./output/dynamic_dino_shapes_third"
