"""Geometry of windowed attention: windows of maps, cyclic shifts, positions.

Shapes: B image, H and W of a map (W before T: windows of one map), G windows of the whole batch, T
tokens of a window, N rows, one for each token of the batch, C channel, E slots of all windows, P
some of them.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

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


@dataclass(frozen=True)
class WindowSlots:
    """The tokens of all windows of a batch of maps, as rows to gather.

    Padding to whole windows, the cyclic shift and the cut into windows are one gather, and their
    inverse another.

    Attributes:
        row_E: long, the row that each window's slots hold; any for padding.
        padding_P: long, the slots that hold none.
        slot_N: long, the slot of each row.
        region_GT: int32; only slots of a window with equal numbers attend to each other.
        position_GT2: int32, row and column of each slot in its window.
    """

    row_E: Tensor
    padding_P: Tensor
    slot_N: Tensor
    region_GT: Tensor
    position_GT2: Tensor

    def gather(self, x_NC: Tensor) -> Tensor:
        """Return the rows [N, C] in windows [G, T, C], with zeros as padding."""
        rows_EC = x_NC.index_select(0, self.row_E)
        if len(self.padding_P):
            rows_EC.index_fill_(0, self.padding_P, 0.0)
        return rows_EC.view(*self.region_GT.shape, -1)

    def scatter(self, x_GTC: Tensor) -> Tensor:
        """Return the rows [N, C] of windows [G, T, C]."""
        return x_GTC.flatten(0, 1).index_select(0, self.slot_N)


def slots_of_rows(row_BHW: Tensor, window: Size, shift: Size) -> WindowSlots:
    """Return the slots of the windows of a batch of maps of whole windows.

    Args:
        row_BHW: long, the row that holds each cell's token, -1 = padding. Rows are 0, 1, ... in any
            order, each in one cell.
        window: rows and columns of a window.
        shift: cyclic shift, rows and columns.
    """
    size, device = (row_BHW.shape[1], row_BHW.shape[2]), row_BHW.device
    moved_BHW = row_BHW.roll((-shift[0], -shift[1]), (1, 2))
    row_GT = cut(moved_BHW[..., None], window)[..., 0]
    row_E = row_GT.flatten()
    real_P = (row_E >= 0).nonzero()[:, 0]
    slot_N = torch.empty_like(real_P).index_copy_(0, row_E[real_P], real_P)
    if shift == (0, 0):
        region_GT = torch.zeros_like(row_GT, dtype=torch.int32)
    else:
        region_GT = shift_regions(size, window, shift, device).repeat(len(row_BHW), 1)
    position_1T2 = positions(window, window, device).int()
    return WindowSlots(
        row_E=row_E.clamp_min(0),
        padding_P=(row_E < 0).nonzero()[:, 0],
        slot_N=slot_N,
        region_GT=region_GT,
        position_GT2=position_1T2.expand(len(row_GT), -1, -1).contiguous(),
    )


@lru_cache(maxsize=32)
def window_slots(batch: int, size: Size, window: Size, shift: Size) -> WindowSlots:
    """Return the slots of a batch of maps, on the CPU; those of the last sizes are kept.

    Args:
        batch: number of maps B.
        size: their height and width in tokens; rows are ``image * N + place``.
        window: rows and columns of a window.
        shift: cyclic shift, rows and columns.
    """
    with torch.inference_mode(False):  # later calls may be in any mode
        row_BHW = torch.arange(batch * size[0] * size[1]).view(batch, *size)
        whole = padded(size, window)
        more = (0, whole[1] - size[1], 0, whole[0] - size[0])
        return slots_of_rows(F.pad(row_BHW, more, value=-1), window, shift)
