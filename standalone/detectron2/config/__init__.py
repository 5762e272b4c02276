"""Lazy configs: Python files that describe objects, loaded, changed from the command line, saved and built."""

from .instantiate import instantiate
from .lazy import LazyCall, LazyConfig

__all__ = ["LazyCall", "LazyConfig", "instantiate"]
