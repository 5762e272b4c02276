"""DINO on FocalNet-T with three focal levels.

The backbone is detrex's; building the model needs detrex itself.
"""

from detectron2.config import LazyCall as L

from .dino_r50 import model
from .pyramid import put_backbone, three_stages

focalnet = L("detrex.modeling.backbone.focalnet.FocalNet")(
    embed_dim=96,
    depths=(2, 2, 6, 2),
    focal_levels=(3, 3, 3, 3),
    focal_windows=(3, 3, 3, 3),
    use_conv_embed=False,
    drop_path_rate=0.1,
    out_indices=(1, 2, 3),
)
put_backbone(model, focalnet, three_stages(96))
