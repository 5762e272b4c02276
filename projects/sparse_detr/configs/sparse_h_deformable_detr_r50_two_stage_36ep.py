from tokendetr.config import sparsify

from ...common.coco_36ep import dataloader, lr_multiplier, optimizer, train
from ...h_deformable_detr.configs.models.h_deformable_detr_r50_two_stage import model
from .models.sparse_sparsifier import sparsifier as _sparsifier

sparsify(model, _sparsifier)

train.output_dir = "./output/sparse_h_deformable_detr_r50_two_stage_36ep"
