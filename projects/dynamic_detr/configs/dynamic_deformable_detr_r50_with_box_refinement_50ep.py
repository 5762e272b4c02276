from tokendetr.config import sparsify

from ...common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from ...deformable_detr.configs.models.deformable_detr_r50 import model
from .models.dynamic_sparsifier import sparsifier as _sparsifier

model.with_box_refine = True
sparsify(model, _sparsifier)
model.transformer.encoder.sparsifier.keep_ratios = (0.4, 0.3, 0.2, 0.1)

train.output_dir = "./output/dynamic_deformable_detr_r50_with_box_refinement_50ep"
