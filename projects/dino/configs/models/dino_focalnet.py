"""DINO on FocalNet-L. Building it needs detrex itself, whose backbone this is."""

from detectron2.config import LazyCall as L

from .dino_r50 import model
from .pyramid import put_backbone, three_stages

focalnet = L("detrex.modeling.backbone.focalnet.FocalNet")(
    embed_dim=192,
    depths=(2, 2, 18, 2),
    focal_levels=(3, 3, 3, 3),
    focal_windows=(5, 5, 5, 5),
    use_conv_embed=True,
    use_postln=True,
    use_postln_in_modulation=False,
    use_layerscale=True,
    normalize_modulator=False,
    out_indices=(1, 2, 3),
)
put_backbone(model, focalnet, three_stages(192))
