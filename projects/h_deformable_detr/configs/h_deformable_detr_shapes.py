"""H-Deformable DETR, two-stage, from scratch on the shapes data set."""

from ...common.shapes import dataloader, fit, lr_multiplier, optimizer, train
from .models.h_deformable_detr_r50 import model

fit(model)
model.num_queries_one2one = 100
model.num_queries_one2many = 300
model.transformer.two_stage_num_proposals = 400
model.as_two_stage = True
model.with_box_refine = True

train.output_dir = "./output/h_deformable_detr_shapes"
