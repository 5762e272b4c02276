"""Tokens of feature pyramids: their layout, choosing among them, reducing and restoring them."""

from tokendetr.tokens.layout import LevelLayout
from tokendetr.tokens.maps import Identity, Keep, TokenMap

__all__ = ["Identity", "Keep", "LevelLayout", "TokenMap"]
