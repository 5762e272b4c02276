from .dino_swin_large_384 import model

model.backbone.pretrain_img_size = 224
model.backbone.window_size = 7
