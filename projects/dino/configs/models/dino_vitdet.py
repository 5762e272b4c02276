"""DINO on ViTDet-B, a plain vision transformer with a simple feature pyramid.

Every third block attends globally, the others in windows.
"""

from functools import partial

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import SimpleFeaturePyramid, ViT
from torch import nn

from .dino_r50 import model
from .pyramid import put_plain_transformer

vit = L(ViT)(
    img_size=1024,
    patch_size=16,
    embed_dim=768,
    depth=12,
    num_heads=12,
    drop_path_rate=0.1,
    window_size=14,
    mlp_ratio=4,
    qkv_bias=True,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    window_block_indexes=[0, 1, 3, 4, 6, 7, 9, 10],
    residual_block_indexes=[],
    use_rel_pos=True,
    out_feature="last_feat",
)
put_plain_transformer(model, SimpleFeaturePyramid, vit, 1024)
