"""Build a model from a config."""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.utils.registry import Registry
from torch import nn

__all__ = ["META_ARCH_REGISTRY", "build_model"]

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Whole models, by the name under which yacs configs ask for them."


def build_model(cfg: Any) -> nn.Module:
    """Build the model of a lazy config and move it to the config's device.

    Args:
        cfg: a lazy config with ``model`` (and optionally ``train.device``), or the model node.

    Raises:
        ValueError: ``cfg`` is a yacs config (``cfg.MODEL...``), which is not supported here.
    """
    if hasattr(cfg, "MODEL") and not (isinstance(cfg, Mapping) and "MODEL" not in cfg):
        raise ValueError(
            "build_model got a yacs config (cfg.MODEL). This machine runs the bundled subset of "
            "detectron2, which builds lazy configs only: load one with LazyConfig.load and call "
            "instantiate(cfg.model), or install detectron2."
        )
    if isinstance(cfg, Mapping) and "_target_" in cfg:
        return instantiate(cfg)
    if not (isinstance(cfg, Mapping) and "model" in cfg):
        raise ValueError(
            "build_model needs a lazy config with a 'model' node, or such a node itself."
        )
    model = instantiate(cfg["model"])
    device = cfg["train"].get("device", None) if "train" in cfg else None
    return model.to(torch.device(device)) if device is not None else model
