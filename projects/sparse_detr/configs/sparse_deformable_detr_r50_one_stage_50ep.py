from tokendetr.config import sparsify

from ...deformable_detr.configs.deformable_detr_r50_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from .models.sparse_sparsifier import sparsifier

sparsify(model, sparsifier)
# One stage: the detector has no projection to share.
model.transformer.encoder.sparsifier.projection = "own"

train.output_dir = "./output/sparse_deformable_detr_r50_one_stage_50ep"
dataloader.evaluator.output_dir = train.output_dir
