"""Changes of a detector's config for backbones other than the ResNet."""

from collections.abc import Callable
from typing import Any

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from omegaconf import DictConfig


def put_backbone(model: DictConfig, backbone: DictConfig, channels: dict[str, int]) -> None:
    """Give a detector a backbone whose outputs have these names and channels."""
    model.backbone = backbone
    model.neck.input_shapes = {name: ShapeSpec(channels=channels[name]) for name in channels}
    model.neck.in_features = list(channels)


def three_stages(width: int) -> dict[str, int]:
    """Return the channels of stages 2 to 4 of a backbone whose first stage has ``width``."""
    return {"p1": 2 * width, "p2": 4 * width, "p3": 8 * width}


def add_first_stage(model: DictConfig, *, channels: int) -> None:
    """Let a detector that reads stages 2 to 4 of its backbone read the first one too."""
    model.backbone.out_indices = (0, 1, 2, 3)
    model.neck.input_shapes["p0"] = ShapeSpec(channels=channels)
    model.neck.in_features = ["p0", "p1", "p2", "p3"]
    model.neck.num_outs = 5
    model.transformer.num_feature_levels = 5


def put_plain_transformer(
    model: DictConfig, pyramid: str | Callable[..., Any], transformer: DictConfig, size: int
) -> None:
    """Give a detector a plain vision transformer with a simple feature pyramid of four levels.

    Args:
        model: the detector's node, changed in place.
        pyramid: class of the pyramid, or its name.
        transformer: node of the transformer.
        size: pixels of the square that images are padded to.
    """
    levels = L(pyramid)(
        net=transformer,
        in_feature="${.net.out_feature}",
        out_channels=256,
        scale_factors=(2.0, 1.0, 0.5),
        top_block=L(LastLevelMaxPool)(),
        norm="LN",
        square_pad=size,
    )
    put_backbone(model, levels, dict.fromkeys(("p3", "p4", "p5", "p6"), 256))
