from tokendetr.config import sparsify

from ...common.coco_36ep import dataloader, lr_multiplier, optimizer, train
from ...h_deformable_detr.configs.models.h_deformable_detr_r50_two_stage import model
from .models.dynamic_sparsifier import sparsifier as _sparsifier

sparsify(model, _sparsifier)
model.transformer.encoder.sparsifier.keep_ratios = (0.4, 0.3, 0.2, 0.1)

train.output_dir = "./output/dynamic_h_deformable_detr_r50_two_stage_36ep"
