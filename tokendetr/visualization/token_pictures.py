"""Pictures and counts of what each encoder layer did with the tokens of one image.

Every layer is a row, every feature level a column. A token that stays a query of its own shows the
image; tokens merged into one query show their mean colour inside a frame; a token that is no query
in this layer (left out, or taken in by others) is darkened. The last column is the number of
queries per area, over all levels; with one level there is none. Scores that tokens were chosen by
are heat maps above the layers, the decoder's attention to each token is one below them, and so is,
where layers differ, in how many of them a token takes part.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from tokendetr.encoder.layer_tokens import (
    MERGED,
    SKIPPED,
    LayerTokens,
    describe,
    layer_tokens,
)
from tokendetr.encoder.trace import ForwardTrace
from tokendetr.tokens import LevelLayout

__all__ = ["draw_tokens"]

_FRAME = np.array([255, 200, 0], dtype=np.float32)
_GAP = 6
_LABEL = 16


def draw_tokens(
    image_HWC: NDArray[np.uint8], forward: ForwardTrace, *, image: int = 0, width: int = 256
) -> Image.Image:
    """Draw all layers and levels of one image.

    Args:
        image_HWC: the RGB picture that the model saw, of any size.
        forward: what the encoder recorded (:func:`tokendetr.encoder.trace.record_tokens`).
        image: number of the picture in the recorded batch.
        width: of each tile, pixels.
    """
    height = max(1, round(image_HWC.shape[0] * width / image_HWC.shape[1]))
    picture = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR)
    base = np.asarray(picture, dtype=np.float32)
    layout = forward.layout
    rows = _map_rows(base, forward, image, before=True)
    used_N = np.zeros(layout.num_tokens, dtype=np.int64)
    for layer, counts in zip(forward.layers, describe(forward, image), strict=True):
        tokens = layer_tokens(layer.token_map, layout, image)
        used_N += tokens.state_N != SKIPPED
        tiles = [_level_tile(base, tokens, layout, level) for level in range(layout.num_levels)]
        levels = counts["levels"]
        assert isinstance(levels, list)
        labels = [
            f"layer {counts['layer']}, level {number}: {level['queries']} of {level['tokens']}"
            for number, level in enumerate(levels, start=1)
        ]
        if layout.num_levels > 1:
            tiles.append(_density_tile(base, tokens, layout))
            labels.append(f"queries per area: {counts['queries']} of {counts['tokens']}")
        rows.append((labels, tiles))
    if np.any((used_N > 0) & (used_N < len(forward.layers))):
        share_N = torch.from_numpy(used_N / len(forward.layers))
        rows.append(_heat_row(base, layout, "layers", share_N))
    return _assemble(rows + _map_rows(base, forward, image, before=False), width, height)


Row = tuple[list[str], list[NDArray[np.float32]]]
"""Labels and tiles of a row of a sheet."""


def _assemble(rows: list[Row], width: int, height: int) -> Image.Image:
    step_x, step_y = width + _GAP, height + _GAP + _LABEL
    columns = len(rows[0][1])
    sheet = Image.new("RGB", (columns * step_x + _GAP, len(rows) * step_y + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (labels, tiles) in enumerate(rows):
        for column, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
            corner = _GAP + column * step_x, _GAP + row * step_y
            pen.text(corner, label, fill="black")
            sheet.paste(Image.fromarray(tile.astype(np.uint8)), (corner[0], corner[1] + _LABEL))
    return sheet


def _map_rows(
    base_HWC: NDArray[np.float32], forward: ForwardTrace, image: int, *, before: bool
) -> list[Row]:
    """Heat maps of what tokens were chosen from (``before``), or of what became known later.

    Everything that was recorded with one number per token of the whole pyramid is drawn.
    """
    named = list(forward.maps.items())
    if before:
        named = [
            (f"{name} of layer {number}", score)
            for number, layer in enumerate(forward.layers, start=1)
            for name, score in layer.scores.items()
        ]
    layout, rows = forward.layout, []
    for name, value_BN in named:
        if value_BN.shape != layout.valid_BN.shape:
            continue
        value_N, valid_N = value_BN[image].float().cpu(), layout.valid_BN[image].cpu()
        sizes = layout.level_sizes
        # Scores compete across levels; attention is handed out level by level.
        spans = [layout.num_tokens] if before else sizes
        pairs = zip(value_N.split(spans), valid_N.split(spans), strict=True)
        share_N = torch.cat([_shares(values, valid) for values, valid in pairs])
        rows.append(_heat_row(base_HWC, layout, name, share_N))
    return rows


def _heat_row(
    base_HWC: NDArray[np.float32], layout: LevelLayout, name: str, share_N: Tensor
) -> Row:
    """One number of 0 to 1 per token, by level, and of several levels the highest."""
    areas = [
        _enlarge(share.view(shape).numpy(), *base_HWC.shape[:2])
        for share, shape in zip(share_N.split(layout.level_sizes), layout.level_shapes, strict=True)
    ]
    labels = [f"{name}, level {number}" for number in range(1, len(areas) + 1)]
    if len(areas) > 1:
        areas.append(np.max(areas, axis=0))
        labels.append(f"{name}, highest")
    return labels, [_heat(base_HWC, area) for area in areas]


def _shares(value_N: Tensor, valid_N: Tensor) -> Tensor:
    """Real tokens' values between the lowest (0) and the highest (1); padding is 0."""
    usable_N = valid_N & value_N.isfinite()
    if not usable_N.any():
        return torch.zeros_like(value_N)
    low, high = value_N[usable_N].min(), value_N[usable_N].max()
    share_N = (value_N - low) / (high - low).clamp_min(1e-12)
    return share_N.where(usable_N, 0.0)


def _heat(base_HWC: NDArray[np.float32], share_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shares of 0 to 1 as colours over the picture's grey values."""
    colors = matplotlib.colormaps["inferno"](share_HW)
    grey = base_HWC.mean(axis=2, keepdims=True)
    tile: NDArray[np.float32] = (0.3 * grey + 0.7 * 255 * colors[..., :3]).astype(np.float32)
    return tile


def _enlarge(grid_HW: NDArray, height: int, width: int) -> NDArray:
    """A grid's cells as areas of a picture (nearest)."""
    rows = np.arange(height) * grid_HW.shape[0] // height
    columns = np.arange(width) * grid_HW.shape[1] // width
    return grid_HW[rows][:, columns]


def _level_tile(
    base_HWC: NDArray[np.float32], tokens: LayerTokens, layout: LevelLayout, level: int
) -> NDArray[np.float32]:
    height, width = base_HWC.shape[:2]
    start, size = layout.level_starts[level], layout.level_sizes[level]
    grid = layout.level_shapes[level]
    span = slice(start, start + size)
    state_HW = _enlarge(tokens.state_N[span].reshape(grid), height, width)
    query_HW = _enlarge(tokens.query_N[span].reshape(grid), height, width)
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
        edge = np.zeros_like(merged)
        edge[1:] |= query_HW[1:] != query_HW[:-1]
        edge[:, 1:] |= query_HW[:, 1:] != query_HW[:, :-1]
        framed = edge & merged
        tile[framed] = 0.4 * tile[framed] + 0.6 * _FRAME
    return tile


def _density_tile(
    base_HWC: NDArray[np.float32], tokens: LayerTokens, layout: LevelLayout
) -> NDArray[np.float32]:
    """Queries per pixel over the picture's grey values."""
    height, width = base_HWC.shape[:2]
    density = np.zeros((height, width), dtype=np.float32)
    for level, (start, size) in enumerate(
        zip(layout.level_starts, layout.level_sizes, strict=True)
    ):
        grid = layout.level_shapes[level]
        span = slice(start, start + size)
        query_N = tokens.query_N[span]
        used, inverse, cells = np.unique(query_N, return_inverse=True, return_counts=True)
        per_cell = np.where(used < 0, 0.0, 1.0 / cells)[inverse]
        density += _enlarge(per_cell.reshape(grid), height, width) * (size / layout.level_sizes[0])
    return _heat(base_HWC, density / max(float(density.max()), 1e-6))
