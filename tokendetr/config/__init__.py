"""Lazy configs: load them with strict overrides, edit them, find them by name."""

from tokendetr.config.all_or_nothing import all_or_nothing
from tokendetr.config.edit import (
    add_bypass,
    detectron2_model,
    resize,
    sparsify,
    supervised,
    target_name,
)
from tokendetr.config.load import apply_overrides, load_config

__all__ = [
    "add_bypass",
    "all_or_nothing",
    "apply_overrides",
    "detectron2_model",
    "load_config",
    "resize",
    "sparsify",
    "supervised",
    "target_name",
]
