from tokendetr.config import sparsify

from ...dn_deformable_detr.configs.dn_deformable_detr_r50_50ep import (
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

train.output_dir = "./output/sparse_dn_deformable_detr_r50_50ep"
