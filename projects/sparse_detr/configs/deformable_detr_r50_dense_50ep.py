"""The paper's Deformable-DETR+, the dense detector that Sparse DETR is compared with."""

from .sparse_deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.encoder.sparsifier = None

train.output_dir = "./output/deformable_detr_r50_dense_50ep"
