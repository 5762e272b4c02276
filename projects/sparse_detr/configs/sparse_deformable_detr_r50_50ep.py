from ...common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from .models.sparse_deformable_detr_r50 import model

# The published recipe: projections of reference points and sampling offsets learn at a tenth
# of the rate, like the backbone.
optimizer.lr = 2e-4
for name in ("reference_points", "sampling_offsets"):
    optimizer.params.lr_factor_func.factors[name] = 0.1
train.output_dir = "./output/sparse_deformable_detr_r50_50ep"
