"""DINO on InternImage-T.

The backbone is detrex's; building the model needs detrex itself, with its DCNv3 operator.
"""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from .dino_r50 import model
from .pyramid import put_backbone, three_stages


def size(model: DictConfig, *, depths: tuple[int, ...], channels: int) -> None:
    """Set the backbone's depths and the channels of its first stage, in groups of 16."""
    model.backbone.depths = depths
    model.backbone.channels = channels
    model.backbone.groups = [channels // 16 * 2**stage for stage in range(4)]
    put_backbone(model, model.backbone, three_stages(channels))


model.backbone = L("detrex.modeling.backbone.internimage.InternImage")(
    core_op="DCNv3",
    mlp_ratio=4.0,
    drop_path_rate=0.1,
    norm_layer="LN",
    layer_scale=1.0,
    offset_scale=1.0,
    post_norm=False,
    with_cp=False,
    out_indices=(1, 2, 3),
)
size(model, depths=(4, 4, 18, 4), channels=64)
