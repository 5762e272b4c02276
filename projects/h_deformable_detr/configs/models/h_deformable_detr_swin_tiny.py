from ....dino.configs.models.dino_swin_tiny_224 import model as dino
from .h_deformable_detr_r50_two_stage import model

model.backbone = dino.backbone
model.backbone.drop_path_rate = 0.2
model.neck = dino.neck
