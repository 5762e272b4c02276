from .dino_r50 import model

model.backbone.stages.depth = 101
