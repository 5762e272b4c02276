"""Deformable DETR, two-stage, from scratch on the shapes data set."""

from ...common.shapes import dataloader, fit, lr_multiplier, optimizer, train
from .models.deformable_detr_r50 import model

fit(model)
model.num_queries = 100
model.with_box_refine = True
model.as_two_stage = True

train.output_dir = "./output/deformable_detr_shapes"
