"""Shape of a feature map as far as it is known before a forward pass."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Channels, height, width and stride of a feature map; None if unknown."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
