"""Lazy configs: load with strict overrides, edit, and look up by name."""

from tokendetr.config.all_or_nothing import all_or_nothing
from tokendetr.config.edit import (
    add_bypass,
    detectron2_model,
    observed,
    resize,
    sparsify,
    sparsify_pixel_decoder,
)
from tokendetr.config.files import checkpoint_file
from tokendetr.config.fragments import get_fragment
from tokendetr.config.load import load_config
from tokendetr.config.overrides import apply_overrides
from tokendetr.config.wrap import target_name, wrap_target

__all__ = [
    "add_bypass",
    "all_or_nothing",
    "apply_overrides",
    "checkpoint_file",
    "detectron2_model",
    "get_fragment",
    "load_config",
    "resize",
    "sparsify",
    "sparsify_pixel_decoder",
    "observed",
    "target_name",
    "wrap_target",
]
