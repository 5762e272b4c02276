"""DINO on EVA-01, a plain vision transformer of a billion parameters.

The backbone is detrex's; building the model needs detrex itself.
"""

from functools import partial

from detectron2.config import LazyCall as L
from torch import nn

from .dino_r50 import model
from .pyramid import put_plain_transformer

vit = L("detrex.modeling.backbone.eva.EVAViT")(
    img_size=1280,
    patch_size=16,
    embed_dim=1408,
    depth=40,
    num_heads=16,
    drop_path_rate=0.6,
    window_size=16,
    mlp_ratio=6144 / 1408,
    qkv_bias=True,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    # Every fourth block attends to the whole image.
    window_block_indexes=[index for index in range(40) if index % 4 != 3],
    residual_block_indexes=[],
    use_act_checkpoint=True,
    use_rel_pos=True,
    out_feature="last_feat",
    beit_like_qkv_bias=True,
    beit_like_gamma=False,
    freeze_patch_embed=True,
)
put_plain_transformer(model, "detrex.modeling.backbone.eva.SimpleFeaturePyramid", vit, 1280)
