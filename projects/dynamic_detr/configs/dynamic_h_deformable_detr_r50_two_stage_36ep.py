from tokendetr.config import sparsify

from ...h_deformable_detr.configs.h_deformable_detr_r50_two_stage_36ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from .models.dynamic_sparsifier import sparsifier

sparsify(model, sparsifier)
model.transformer.encoder.sparsifier.keep_ratios = (0.4, 0.3, 0.2, 0.1)

train.output_dir = "./output/dynamic_h_deformable_detr_r50_two_stage_36ep"
