"""DINO on ConvNeXt-T."""

from detectron2.config import LazyCall as L
from detrex.modeling.backbone import ConvNeXt
from omegaconf import DictConfig

from .dino_r50 import model
from .pyramid import put_backbone, three_stages


def size(model: DictConfig, *, depth: int, width: int) -> None:
    """Set the depth of the backbone's third stage and the width of its first."""
    model.backbone.depths = [3, 3, depth, 3]
    model.backbone.dims = [width, 2 * width, 4 * width, 8 * width]
    put_backbone(model, model.backbone, three_stages(width))


model.backbone = L(ConvNeXt)(
    in_chans=3, drop_path_rate=0.0, layer_scale_init_value=1.0, out_indices=(1, 2, 3)
)
size(model, depth=9, width=96)
