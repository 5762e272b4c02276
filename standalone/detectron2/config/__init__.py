"""Lazy configs: describe objects in Python files, override, save and build them."""

from .instantiate import instantiate
from .lazy import LazyCall, LazyConfig

__all__ = ["LazyCall", "LazyConfig", "instantiate"]
