from tokendetr.config import sparsify

from ...common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from ...deformable_detr.configs.models.deformable_detr_r50 import model
from .models.sparse_sparsifier import sparsifier as _sparsifier

sparsify(model, _sparsifier)
# One stage: the detector has no projection to share.
model.transformer.encoder.sparsifier.projection = "own"

train.output_dir = "./output/sparse_deformable_detr_r50_one_stage_50ep"
