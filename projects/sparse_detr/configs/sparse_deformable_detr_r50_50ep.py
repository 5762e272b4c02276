from ...deformable_detr.configs.deformable_detr_r50_50ep import (
    dataloader,
    lr_multiplier,
    optimizer,
    train,
)
from .models.sparse_deformable_detr_r50 import model

optimizer.lr = 2e-4
train.output_dir = "./output/sparse_deformable_detr_r50_50ep"
dataloader.evaluator.output_dir = train.output_dir
model.device = train.device
