from tokendetr.config import sparsify

from ...h_deformable_detr.configs.h_deformable_detr_r50_two_stage_36ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from .models.sparse_sparsifier import sparsifier

sparsify(model, sparsifier)

train.output_dir = "./output/sparse_h_deformable_detr_r50_two_stage_36ep"
