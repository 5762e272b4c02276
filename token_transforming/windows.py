"""Windows of maps: which cells are real, and their relative position bias.

Shapes: B image, H and W of a map, G windows of the whole batch, W windows of one image, T tokens of
a window, M head, C channel, Y and X rows and columns of a table of relative positions.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.layers.windows import Size, cut, padded, positions

WindowBias = Literal["interpolated", "positions"]
WINDOW_BIASES = ("interpolated", "positions")
APART = -100.0
"""Bias between tokens that are neighbors only through the cyclic shift (Swin's value)."""


def validity(size: Size, window: Size, device: torch.device) -> Tensor | None:
    """Return bool [W, T], False where windows extend beyond the map; None if none does."""
    height, width = padded(size, window)
    if (height, width) == size:
        return None
    inside_HW = (torch.arange(height, device=device) < size[0])[:, None] & (
        torch.arange(width, device=device) < size[1]
    )
    return cut(inside_HW[None, ..., None], window)[..., 0]


def real_tokens(size: Size, window: Size) -> tuple[int, ...]:
    """Return the number of cells of each window, row by row, that lie on the map."""
    sides = [
        [min(side, length - start) for start in range(0, length, side)]
        for length, side in zip(size, window, strict=True)
    ]
    return tuple(rows * columns for rows in sides[0] for columns in sides[1])


def resized_table(table_MYX: Tensor, window: Size) -> Tensor:
    """Interpolate a bias table to another window, [M, 2 rows - 1, 2 columns - 1]."""
    wanted = 2 * window[0] - 1, 2 * window[1] - 1
    if table_MYX.shape[1:] == wanted:
        return table_MYX
    table_1MYX = F.interpolate(
        table_MYX[None].float(), size=wanted, mode="bicubic", align_corners=True
    )
    return table_1MYX[0].to(table_MYX.dtype)


def window_table_bias(table_MYX: Tensor, window: Size) -> Tensor:
    """Return the relative position bias of a window, [1, M, T, T].

    Args:
        table_MYX: [M, 2h - 1, 2w - 1], bias of (query - key) offsets in a window of h x w.
        window: rows and columns; the table is interpolated if they are not h and w.
    """
    place_1T2 = positions(window, window, table_MYX.device)
    return position_table_bias(resized_table(table_MYX, window), place_1T2)


def position_table_bias(table_MYX: Tensor, position_GT2: Tensor) -> Tensor:
    """Return the relative position bias between tokens at any positions, [G, M, T, T].

    Offsets beyond the table use its farthest entries.
    """
    offset_GTT2 = position_GT2[:, :, None] - position_GT2[:, None]
    indices = []
    for axis in (0, 1):
        reach = table_MYX.shape[1 + axis] // 2
        indices.append(offset_GTT2[..., axis].clamp(-reach, reach) + reach)
    return table_MYX[:, indices[0], indices[1]].transpose(0, 1)
