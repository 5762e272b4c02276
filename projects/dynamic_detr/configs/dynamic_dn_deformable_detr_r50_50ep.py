from tokendetr.config import sparsify

from ...common.coco_50ep import dataloader, lr_multiplier, optimizer, train
from ...dn_deformable_detr.configs.models.dn_deformable_detr_r50 import model
from .models.dynamic_sparsifier import sparsifier as _sparsifier

sparsify(model, _sparsifier)

train.output_dir = "./output/dynamic_dn_deformable_detr_r50_50ep"
