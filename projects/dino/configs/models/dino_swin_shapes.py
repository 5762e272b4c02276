"""The small DINO of the shapes data set on a narrow Swin Transformer."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import SwinTransformer

from .dino_shapes import model

model.backbone = L(SwinTransformer)(
    pretrain_img_size=256,
    embed_dim=32,
    depths=(2, 2, 4, 2),
    num_heads=(1, 2, 4, 8),
    window_size=7,
    drop_path_rate=0.05,
    out_indices=(1, 2, 3),
)
model.neck.input_shapes = {
    "p1": ShapeSpec(channels=64),
    "p2": ShapeSpec(channels=128),
    "p3": ShapeSpec(channels=256),
}
model.neck.in_features = ["p1", "p2", "p3"]
