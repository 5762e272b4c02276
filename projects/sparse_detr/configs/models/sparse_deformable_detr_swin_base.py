from ....dino.configs.models.dino_swin_base_384 import model as dino
from .sparse_deformable_detr_r50 import model

model.backbone = dino.backbone
model.neck = dino.neck
