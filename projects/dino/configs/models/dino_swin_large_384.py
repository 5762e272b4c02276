from detectron2.layers import ShapeSpec

from .dino_swin_base_384 import model

model.backbone.embed_dim = 192
model.backbone.num_heads = (6, 12, 24, 48)
model.neck.input_shapes = {
    "p1": ShapeSpec(channels=384),
    "p2": ShapeSpec(channels=768),
    "p3": ShapeSpec(channels=1536),
}
