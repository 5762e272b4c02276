"""Geometry of windowed attention: windows of maps, shifts, relative position bias.

Shapes: B image, H and W of a map, G windows of the whole batch, W windows of one image, T tokens of
a window, M head, C channel, Y and X rows and columns of a table of relative positions.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

WindowBias = Literal["interpolated", "positions"]
WINDOW_BIASES = ("interpolated", "positions")
APART = -100.0
"""Bias between tokens that are neighbors only through the cyclic shift (Swin's value)."""

Size = tuple[int, int]


def padded(size: Size, window: Size) -> Size:
    """Return a map's size rounded up to whole windows."""
    return size[0] + -size[0] % window[0], size[1] + -size[1] % window[1]


def pad_map(x_BHWC: Tensor, window: Size) -> Tensor:
    """Pad a map with zeros at the right and bottom to whole windows."""
    height, width = x_BHWC.shape[1:3]
    if height % window[0] == 0 and width % window[1] == 0:
        return x_BHWC
    return F.pad(x_BHWC, (0, 0, 0, -width % window[1], 0, -height % window[0]))


def cut(x_BHWC: Tensor, window: Size) -> Tensor:
    """Cut a map of whole windows into [G, T, C], row by row."""
    batch, height, width, channels = x_BHWC.shape
    rows, columns = window
    x = x_BHWC.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return x.transpose(2, 3).reshape(-1, rows * columns, channels)


def paste(x_GTC: Tensor, window: Size, size: Size) -> Tensor:
    """Return the map [B, H, W, C] of the given size; the inverse of :func:`cut`."""
    rows, columns = window
    x = x_GTC.reshape(-1, size[0] // rows, size[1] // columns, rows, columns, x_GTC.shape[-1])
    return x.transpose(2, 3).reshape(-1, *size, x_GTC.shape[-1])


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


def positions(size: Size, window: Size, device: torch.device) -> Tensor:
    """Return the row and column of every cell of a padded map, long [W, T, 2]."""
    height, width = padded(size, window)
    row, column = torch.arange(height, device=device), torch.arange(width, device=device)
    cell_HW2 = torch.stack([row[:, None].expand(-1, width), column.expand(height, -1)], dim=-1)
    return cut(cell_HW2[None], window)


def shift_regions(size: Size, window: Size, shift: Size, device: torch.device) -> Tensor:
    """Return region numbers, int32 [W, T].

    They differ between tokens of a window that are neighbors only through the cyclic shift.
    """
    strips = []
    for length, side, moved in zip(size, window, shift, strict=True):
        place = torch.arange(length, device=device)
        strips.append((place >= length - side).int() + (place >= length - moved).int())
    region_HW = strips[0][:, None] * 3 + strips[1]
    return cut(region_HW[None, ..., None], window)[..., 0]


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
