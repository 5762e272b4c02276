from tokendetr.config import sparsify

from ...dab_deformable_detr.configs.dab_deformable_detr_r50_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from .models.dynamic_sparsifier import sparsifier

sparsify(model, sparsifier)

train.output_dir = "./output/dynamic_dab_deformable_detr_r50_50ep"
