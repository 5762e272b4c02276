"""The small DINO of the shapes data set on a small plain vision transformer."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import SimpleFeaturePyramid, ViT

from .dino_shapes import model

model.backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(
        img_size=256,
        patch_size=16,
        embed_dim=128,
        depth=8,
        num_heads=4,
        drop_path_rate=0.05,
        pretrain_img_size=256,
        pretrain_use_cls_token=False,
    ),
    in_feature="last_feat",
    out_channels=96,
    scale_factors=(2.0, 1.0, 0.5),
)
model.neck.input_shapes = {name: ShapeSpec(channels=96) for name in ("p3", "p4", "p5")}
model.neck.in_features = ["p3", "p4", "p5"]
