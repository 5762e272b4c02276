from .dino_swin_tiny_224 import model

model.backbone.depths = (2, 2, 18, 2)
model.backbone.drop_path_rate = 0.2
