"""Blocks of windowed backbones in CPU evaluation: real tokens as rows, windows as gathers.

Shapes: B image, H and W of a map, G windows of the whole batch, T tokens of a window, N real tokens
of the batch, E cells of all maps, C channel, M head, Y and X rows and columns of a table of
relative positions.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from token_transforming.map_state import MapState, Windows, arranged, windows_of
from token_transforming.window_attention import square_table
from token_transforming.windowed_blocks import WindowedBlocks
from token_transforming.windows import WindowBias, resized_table
from tokendetr.layers.cpu.swin import add_block, block_slots
from tokendetr.layers.windows import WindowSlots, paste, slots_of_rows


def evaluate_blocks(
    blocks: Sequence[nn.Module],
    x_BHWC: Tensor,
    state: MapState,
    window_bias: WindowBias,
    interface: WindowedBlocks,
) -> Tensor:
    """Return the output of blocks that do not reduce, as ``_run_block`` computes it.

    Args:
        blocks: the blocks; ``interface.is_fast`` is True for each.
        x_BHWC: the map.
        state: of its tokens.
        window_bias: the relative position bias of reduced windows.
        interface: interface to the blocks.

    Returns:
        The map [B, H, W, C]; cells of padding are 0.
    """
    batch, height, width, _ = x_BHWC.shape
    x_NC = x_BHWC.flatten(0, 2)
    if state.window is None:
        for block in blocks:
            x_NC = add_block(block, x_NC, block_slots(block, batch, (height, width)))
        return x_NC.view(x_BHWC.shape)
    cells = _RealCells(state, batch)
    x_NC = cells.rows(x_NC)
    made: dict[bool, tuple[WindowSlots, Tensor | None]] = {}
    for block in blocks:
        shifted = interface.is_shifted(block)
        if shifted not in made:
            made[shifted] = cells.slots(windows_of(block, state, window_bias, interface))
        slots, key_bias_GT = made[shifted]
        table_MYX = interface.bias_table(block)
        if window_bias == "interpolated":
            table_MYX = square_table(resized_table(table_MYX, state.window))
        x_NC = add_block(block, x_NC, slots, bias_table_MRR=table_MYX, key_bias_GT=key_bias_GT)
    return cells.map(x_NC).view(x_BHWC.shape)


class _RealCells:
    """The real tokens of a reduced map as rows, in the order of their cells.

    Args:
        state: of the map's tokens.
        batch: number of maps B.
    """

    def __init__(self, state: MapState, batch: int) -> None:
        self._state = state
        if state.valid_GT is None or state.window is None:
            self._cell_N = None
            self._row_BHW = torch.arange(batch * state.size[0] * state.size[1])
        else:
            valid_GT1 = state.valid_GT[..., None]
            valid_E = paste(valid_GT1, state.window, state.size).flatten()
            self._cell_N = valid_E.nonzero()[:, 0]
            self._row_BHW = (valid_E.cumsum(0) - 1).masked_fill(~valid_E, -1)
        self._row_BHW = self._row_BHW.view(batch, *state.size)

    def rows(self, x_EC: Tensor) -> Tensor:
        """Return the real tokens [N, C] of all cells [E, C]."""
        return x_EC if self._cell_N is None else x_EC.index_select(0, self._cell_N)

    def map(self, x_NC: Tensor) -> Tensor:
        """Return all cells [E, C] with the real tokens [N, C], and zeros as padding."""
        if self._cell_N is None:
            return x_NC
        x_EC = x_NC.new_zeros(self._row_BHW.numel(), x_NC.shape[1])
        return x_EC.index_copy_(0, self._cell_N, x_NC)

    def slots(self, windows: Windows) -> tuple[WindowSlots, Tensor | None]:
        """Return the windows of an attention, and the bias of each key by its size or None."""
        slots = slots_of_rows(self._row_BHW, windows.window, windows.shift)
        if windows.position_GT2 is not None:
            slots = replace(slots, position_GT2=windows.position_GT2.int())
        if self._state.size_GT is None:
            return slots, None
        return slots, arranged(self._state.size_GT[..., None], self._state, windows)[..., 0].log()
