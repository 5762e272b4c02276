"""The registry from which yacs configs choose a backbone."""

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

from .backbone import Backbone

__all__ = ["BACKBONE_REGISTRY", "build_backbone"]

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "Backbones, by the name under which yacs configs ask for them."


def build_backbone(cfg: Any, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build ``cfg.MODEL.BACKBONE.NAME`` from :data:`BACKBONE_REGISTRY`.

    Raises:
        ValueError: for a lazy config, whose backbone ``instantiate(cfg.model.backbone)`` builds.
    """
    if not hasattr(cfg, "MODEL"):
        raise ValueError(
            "build_backbone needs a yacs config (cfg.MODEL.BACKBONE). "
            "Build the backbone of a lazy config with instantiate(cfg.model.backbone)."
        )
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    assert isinstance(backbone, Backbone)
    return backbone
