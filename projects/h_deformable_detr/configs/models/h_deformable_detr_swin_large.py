from ....dino.configs.models.dino_swin_large_224 import model as dino
from .h_deformable_detr_r50_two_stage import model

model.backbone = dino.backbone
model.neck = dino.neck
