"""Efficient detection transformers for detectron2 and detrex."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import public names when they are first used."""
    if name == "zoo":
        return importlib.import_module("tokendetr.config.zoo")
    raise AttributeError(f"module 'tokendetr' has no attribute {name!r}")
