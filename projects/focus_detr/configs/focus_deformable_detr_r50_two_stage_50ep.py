from tokendetr.config import sparsify

from ...deformable_detr.configs.deformable_detr_r50_two_stage_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from .models.focus_sparsifier import sparsifier

sparsify(model, sparsifier)

train.output_dir = "./output/focus_deformable_detr_r50_two_stage_50ep"
