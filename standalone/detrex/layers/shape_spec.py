"""Static facts about a feature map."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Channels, size and stride of a feature map, as far as known before a forward pass."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
