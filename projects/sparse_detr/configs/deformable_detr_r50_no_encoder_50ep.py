"""The paper's row of 0 %: the decoder attends to the backbone's features."""

from .sparse_deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.encoder.sparsifier = None
model.transformer.encoder.num_layers = 0

train.output_dir = "./output/deformable_detr_r50_no_encoder_50ep"
