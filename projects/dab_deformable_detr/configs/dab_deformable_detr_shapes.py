"""DAB-Deformable DETR from scratch on the shapes data set."""

from ...common.shapes import dataloader, fit, lr_multiplier, optimizer, train
from .models.dab_deformable_detr_r50 import model

fit(model)
model.num_queries = 100

train.output_dir = "./output/dab_deformable_detr_shapes"
