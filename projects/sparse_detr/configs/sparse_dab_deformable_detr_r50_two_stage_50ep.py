from tokendetr.config import sparsify

from ...common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from ...dab_deformable_detr.configs.models.dab_deformable_detr_r50 import model
from .models.sparse_sparsifier import sparsifier as _sparsifier

model.as_two_stage = True
sparsify(model, _sparsifier)

train.seed = 42
train.output_dir = "./output/sparse_dab_deformable_detr_r50_two_stage_50ep"
