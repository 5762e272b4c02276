from detectron2.layers import ShapeSpec

from .dino_swin_small_224 import model

model.backbone.pretrain_img_size = 384
model.backbone.embed_dim = 128
model.backbone.num_heads = (4, 8, 16, 32)
model.backbone.window_size = 12
model.neck.input_shapes = {
    "p1": ShapeSpec(channels=256),
    "p2": ShapeSpec(channels=512),
    "p3": ShapeSpec(channels=1024),
}
