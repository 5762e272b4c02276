from tokendetr.config import sparsify

from ...common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from ...deformable_detr.configs.models.deformable_detr_r50 import model
from .models.focus_sparsifier import sparsifier as _sparsifier

model.with_box_refine = True
model.as_two_stage = True
sparsify(model, _sparsifier)

train.output_dir = "./output/focus_deformable_detr_r50_two_stage_50ep"
