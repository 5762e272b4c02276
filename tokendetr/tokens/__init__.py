"""Tokens of feature pyramids: their layout, choosing among them, and maps that reduce and restore them."""

from tokendetr.tokens.layout import LevelLayout

__all__ = ["LevelLayout"]
