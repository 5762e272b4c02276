"""State of the tokens of a map between the blocks of a windowed backbone.

Shapes: B image, H and W of a map, G windows of the whole batch, T tokens of a window, N real tokens
of the batch, C channel.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from token_transforming.recovery import Undo
from token_transforming.windowed_blocks import WindowedBlocks
from token_transforming.windows import WindowBias
from tokendetr.layers.windows import Size, cut, padded, paste

__all__ = ["MapState", "MapUndo", "Windows", "arranged", "windows_of"]


@dataclass(frozen=True)
class Windows:
    """Division of a map into windows for one attention.

    Attributes:
        size: of the map, whole windows.
        window: rows and columns of one.
        shift: cyclic shift, rows and columns.
        position_GT2: long, positions of the tokens on the map; None: those in the window.
    """

    size: Size
    window: Size
    shift: Size
    position_GT2: Tensor | None


@dataclass(frozen=True)
class MapUndo:
    """Inverse of one reduction: of its tokens within windows, and of the map's size."""

    tokens: Undo
    window: Size
    size: Size


@dataclass(frozen=True)
class MapState:
    """State of the tokens of a map.

    Attributes:
        size: height and width of the current map.
        window: rows and columns of reduced windows; None before the first reduction.
        size_GT: number of original tokens in each; None: not needed.
        valid_GT: bool, False = padding; None if there is none.
        position_GT2: long, positions of the tokens on the original map; None before the first
            reduction.
        real: number of real tokens of each window of an image; None if unknown.
        undo: inverses of the reductions so far.
    """

    size: Size
    window: Size | None = None
    size_GT: Tensor | None = None
    valid_GT: Tensor | None = None
    position_GT2: Tensor | None = None
    real: tuple[int, ...] | None = None
    undo: tuple[MapUndo, ...] = ()


def arranged(x_GTC: Tensor, state: MapState, windows: Windows) -> Tensor:
    """Rearrange values [G, T, C] of unshifted reduced windows to the windows of an attention."""
    assert state.window is not None
    if windows.shift == (0, 0) and windows.window == state.window:
        return x_GTC
    x_BHWC = paste(x_GTC, state.window, state.size)
    if windows.shift != (0, 0):
        x_BHWC = torch.roll(x_BHWC, (-windows.shift[0], -windows.shift[1]), (1, 2))
    return cut(x_BHWC, windows.window)


def windows_of(
    block: nn.Module, state: MapState, window_bias: WindowBias, interface: WindowedBlocks
) -> Windows:
    """Return the division of the map into the windows of a block's attention."""
    side = interface.window(block)
    window = (side, side) if state.window is None else state.window
    shift = (window[0] // 2, window[1] // 2) if interface.is_shifted(block) else (0, 0)
    windows = Windows(padded(state.size, window), window, shift, None)
    if state.position_GT2 is None or window_bias != "positions":
        return windows
    return replace(windows, position_GT2=arranged(state.position_GT2, state, windows))
