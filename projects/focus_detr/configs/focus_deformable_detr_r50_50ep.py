from tokendetr.config import sparsify

from ...common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from ...deformable_detr.configs.models.deformable_detr_r50 import model
from .models.one_stage_sparsifier import sparsifier as _sparsifier

sparsify(model, _sparsifier)

train.output_dir = "./output/focus_deformable_detr_r50_50ep"
