"""Tiles of token drawings: the state of one level's tokens in a layer, and heat maps.

Shapes: H, W tile, C color, N token.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokendetr.encoder.layer_tokens import MERGED, SKIPPED, LayerTokens
from tokendetr.tokens import LevelLayout

__all__ = [
    "FRAME",
    "base_tile",
    "density",
    "enlarge",
    "fitting_width",
    "frames",
    "heat",
    "level_tile",
    "shares",
]

FRAME = np.array([255, 200, 0], dtype=np.float32)
"""Color of the frame around tokens that are merged into one query."""

Tile = NDArray[np.float32]

_MOST_HEIGHTS = 4  # a tile is at most so many times as high as the width that is asked for


def fitting_width(image_HWC: NDArray[np.uint8], width: int) -> int:
    """Return the width of an image's tile, less than ``width`` if it were very high otherwise."""
    height, own = image_HWC.shape[:2]
    return max(1, min(width, _MOST_HEIGHTS * width * own // height))


def base_tile(image_HWC: NDArray[np.uint8], width: int) -> Tile:
    """Return the image at a tile's width."""
    height = max(1, round(image_HWC.shape[0] * width / image_HWC.shape[1]))
    resized = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)


def shares(value_N: Tensor, valid_N: Tensor) -> Tensor:
    """Scale the values of real tokens to [0, 1]; padding and non-finite values become 0."""
    usable_N = valid_N & value_N.isfinite()
    if not usable_N.any():
        return torch.zeros_like(value_N)
    low, high = value_N[usable_N].min(), value_N[usable_N].max()
    share_N = (value_N - low) / (high - low).clamp_min(1e-12)
    return share_N.where(usable_N, 0.0)


def heat(base_HWC: Tile, share_HW: NDArray[np.float32]) -> Tile:
    """Blend a heat map of values in [0, 1] with the image's gray values."""
    colors = matplotlib.colormaps["inferno"](share_HW)
    gray = base_HWC.mean(axis=2, keepdims=True)
    tile: Tile = (0.3 * gray + 0.7 * 255 * colors[..., :3]).astype(np.float32)
    return tile


def enlarge(grid_HW: NDArray, height: int, width: int) -> NDArray:
    """Resize a grid to a tile by nearest-neighbor interpolation."""
    rows = np.arange(height) * grid_HW.shape[0] // height
    columns = np.arange(width) * grid_HW.shape[1] // width
    return grid_HW[rows][:, columns]


def level_tile(base_HWC: Tile, tokens: LayerTokens, layout: LevelLayout, level: int) -> Tile:
    """Draw one level's tokens in a layer.

    Queries are shown as the image, merged ones as their mean color in a frame, others darkened.
    """
    state_HW, query_HW = _cells(base_HWC, tokens, layout, level)
    tile = base_HWC.copy()
    skipped, merged = state_HW == SKIPPED, state_HW == MERGED
    tile[skipped] = tile[skipped] * 0.25
    if merged.any():
        groups, group_of = np.unique(query_HW[merged], return_inverse=True)
        share = np.bincount(group_of, minlength=len(groups))[:, None]
        sums = np.stack(
            [np.bincount(group_of, base_HWC[merged][:, c], len(groups)) for c in range(3)], axis=1
        )
        tile[merged] = (sums / share)[group_of]
        framed = frames(base_HWC, tokens, layout, level)
        tile[framed] = 0.4 * tile[framed] + 0.6 * FRAME
    return tile


def frames(
    base_HWC: Tile, tokens: LayerTokens, layout: LevelLayout, level: int
) -> NDArray[np.bool_]:
    """Return which pixels of a tile are edges of merged tokens."""
    state_HW, query_HW = _cells(base_HWC, tokens, layout, level)
    merged = state_HW == MERGED
    edge = np.zeros_like(merged)
    edge[1:] |= query_HW[1:] != query_HW[:-1]
    edge[:, 1:] |= query_HW[:, 1:] != query_HW[:, :-1]
    framed: NDArray[np.bool_] = edge & merged
    return framed


def _cells(
    base_HWC: Tile, tokens: LayerTokens, layout: LevelLayout, level: int
) -> tuple[NDArray, NDArray]:
    """Return the states and queries of a level's tokens at a tile's resolution."""
    start, grid = layout.level_starts[level], layout.level_shapes[level]
    span = slice(start, start + layout.level_sizes[level])
    size = base_HWC.shape[:2]
    return (
        enlarge(tokens.state_N[span].reshape(grid), *size),
        enlarge(tokens.query_N[span].reshape(grid), *size),
    )


def density(base_HWC: Tile, tokens: LayerTokens, layout: LevelLayout) -> Tile:
    """Return the queries per area [H, W] over all levels, relative to a dense layer."""
    height, width = base_HWC.shape[:2]
    density_HW = np.zeros((height, width), dtype=np.float32)
    for start, size, grid in zip(
        layout.level_starts, layout.level_sizes, layout.level_shapes, strict=True
    ):
        query_N = tokens.query_N[start : start + size]
        used, inverse, cells = np.unique(query_N, return_inverse=True, return_counts=True)
        per_cell = np.where(used < 0, 0.0, 1.0 / cells)[inverse]
        density_HW += enlarge(per_cell.reshape(grid), height, width) * size
    share_HW: Tile = density_HW / np.float32(layout.num_tokens)
    return share_HW
