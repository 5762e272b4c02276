"""Distinct colors for classes and instances."""

import colorsys

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_COUNT = 80
_GOLDEN = 0.618033988749895


def _make_palette() -> np.ndarray:
    """Return colors [count, 3] in [0, 1], hues by the golden ratio so that neighbors differ."""
    rows = []
    for index in range(_COUNT):
        hue = (0.6 + index * _GOLDEN) % 1.0
        saturation = (0.85, 0.6, 0.95)[index % 3]
        value = (0.95, 0.75, 0.55, 0.85)[index % 4]
        rows.append(colorsys.hsv_to_rgb(hue, saturation, value))
    return np.array(rows, dtype=np.float32)


_COLORS = _make_palette()


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """Return all colors, float32 [count, 3] in [0, maximum]; BGR unless ``rgb``."""
    assert maximum in (255, 1), maximum
    colors = _COLORS * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """Return one color [3] in [0, maximum]."""
    return random_colors(1, rgb, maximum)[0]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """Return N different colors (fewer if there are fewer), each [3] in [0, maximum]."""
    chosen = np.random.permutation(len(_COLORS))[:N]
    return list(colormap(rgb, maximum)[chosen])
