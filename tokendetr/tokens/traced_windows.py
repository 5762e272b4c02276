"""The windows of a level in a program that is being exported, whose inputs include the image sizes.

:mod:`tokendetr.tokens.windows` computes with sizes as Python integers. Here they are tensors: the
same arithmetic is done by operators, or its results are looked up in tables of all possible sizes.
Shapes depend on the canvas alone: windows lie row by row in a grid with a place for each window of
the largest image.

Shapes: B image, H and W height and width of the level, T its tokens, C channel, S places of windows
(rows by columns), K kinds of windows: four, because parts of an axis have at most two lengths.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokendetr.tokens.counts import TracedCounts
from tokendetr.tokens.layout import LevelLayout
from tokendetr.tokens.select import topk_valid
from tokendetr.tokens.windows import EQUAL_TOKENS, spread_order, spread_tokens_of_size

KINDS = 4

MergedWindows = Callable[[int, int], dict[tuple[int, int], int]]
"""Maps height and width of an image's level to the number of merged windows of each (rows,
columns)."""


@dataclass(frozen=True)
class _Axis:
    """The parts of one axis of a level.

    Attributes:
        count_B: long, parts of each image.
        length_BP: long, cells of each part; 0 beyond an image's parts.
        last_BP: long, the last cell of each part.
        member_BPX: bool, True for the cells of a part.
        longer_BP: long, 1 for parts that are one cell longer than the image's shortest.
    """

    count_B: Tensor
    length_BP: Tensor
    last_BP: Tensor
    member_BPX: Tensor
    longer_BP: Tensor

    @classmethod
    def of(cls, size_B: Tensor, canvas: int, window: int) -> "_Axis":
        """Divide an axis as :func:`tokendetr.tokens.split_evenly` does."""
        count_B = size_B.div(window, rounding_mode="floor").clamp_min(1)
        size_B1, count_B1 = size_B[:, None], count_B[:, None]
        edge_P = torch.arange(max(1, canvas // window) + 1, device=size_B.device)
        edge_BP = (2 * edge_P * size_B1 + count_B1).div(2 * count_B1, rounding_mode="floor")
        edge_BP = edge_BP.minimum(size_B1)
        first_BP, end_BP = edge_BP[:, :-1], edge_BP[:, 1:]
        length_BP = end_BP - first_BP
        cell_X = torch.arange(canvas, device=size_B.device)
        member_BPX = (cell_X >= first_BP[..., None]) & (cell_X < end_BP[..., None])
        shortest_B1 = size_B1.div(count_B1, rounding_mode="floor")
        longer_BP = (length_BP > shortest_B1).long()
        return cls(count_B, length_BP, (end_BP - 1).clamp_min(0), member_BPX, longer_BP)

    @property
    def part_BX(self) -> Tensor:
        """The part of each cell, long; 0 for cells beyond the image."""
        part_P1 = torch.arange(self.length_BP.shape[1], device=self.count_B.device)[:, None]
        return (self.member_BPX.long() * part_P1).sum(dim=1)


@dataclass(frozen=True)
class TracedWindows:
    """The windows of one level, in each image by its own size.

    Attributes:
        start: the level's first token.
        valid_BS: bool, True where an image has a window.
        cells_BS: long, tokens of each window.
        kind_BS: long, the window's size among the four of its image: 2 if it has a row more than
            the smallest, + 1 if it has a column more.
        order_BS: long, an image's windows in the order of
            :func:`tokendetr.tokens.spread_order`, places without one last.
        window_BT: long, the window of each token of the level; arbitrary for padding.
        anchor_BT: bool, True for the bottom-right token of each window.
        last_BS: long, that token's index in the level; arbitrary for places without a window.
    """

    start: int
    valid_BS: Tensor
    cells_BS: Tensor
    kind_BS: Tensor
    order_BS: Tensor
    window_BT: Tensor
    anchor_BT: Tensor
    last_BS: Tensor
    _rows_BPH: Tensor
    _columns_BQW: Tensor

    @classmethod
    def of(cls, layout: LevelLayout, level: int, window: int) -> "TracedWindows":
        """Divide a level's real part in every image.

        Args:
            layout: the batch, with ``traced_sizes_BL2``.
            level: from 0.
            window: cells per side of a window; the nearly equal parts are at least as long.
        """
        assert layout.traced_sizes_BL2 is not None
        height, width = layout.level_shapes[level]
        size_B2 = layout.traced_sizes_BL2[:, level]
        rows = _Axis.of(size_B2[:, 0], height, window)
        columns = _Axis.of(size_B2[:, 1], width, window)
        grid = (rows.length_BP.shape[1], columns.length_BP.shape[1])
        cells_BS = (rows.length_BP[:, :, None] * columns.length_BP[:, None]).flatten(1)
        kind_BS = (2 * rows.longer_BP[:, :, None] + columns.longer_BP[:, None]).flatten(1)
        order_BS = _spread_orders(*grid, layout.device).index_select(
            0, (rows.count_B - 1) * grid[1] + columns.count_B - 1
        )
        window_BHW = rows.part_BX[:, :, None] * grid[1] + columns.part_BX[:, None]
        anchor_BHW = _last(rows, height)[:, :, None] & _last(columns, width)[:, None]
        return cls(
            layout.level_starts[level],
            cells_BS > 0,
            cells_BS,
            kind_BS,
            order_BS,
            window_BHW.flatten(1),
            anchor_BHW.flatten(1),
            (rows.last_BP[:, :, None] * width + columns.last_BP[:, None]).flatten(1),
            rows.member_BPX.float(),
            columns.member_BPX.float(),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of the level, padding included."""
        return self.window_BT.shape[1]

    def add_up(self, x_BTC: Tensor) -> Tensor:
        """Return the sum of each window's tokens, [B, S, C], by one matrix product per axis."""
        rows_BPH, columns_BQW = self._rows_BPH.to(x_BTC.dtype), self._columns_BQW.to(x_BTC.dtype)
        width, channels = columns_BQW.shape[2], x_BTC.shape[2]
        sum_BPWC = (rows_BPH @ x_BTC.unflatten(1, (-1, width)).flatten(2)).unflatten(
            2, (width, channels)
        )
        return (columns_BQW[:, None] @ sum_BPWC).flatten(1, 2)

    def mean(self, x_BTC: Tensor) -> Tensor:
        """Return the mean of each window's tokens, [B, S, C]."""
        return self.add_up(x_BTC) / self.cells_BS.clamp_min(1).to(x_BTC.dtype)[..., None]

    def coherence(self, x_BNC: Tensor, inverse_norm_BN: Tensor) -> Tensor:
        """Return :func:`tokendetr.tokens.window_coherence` of each window, float32 [B, S].

        Args:
            x_BNC: tokens of all levels.
            inverse_norm_BN: their :func:`tokendetr.tokens.inverse_norms`.
        """
        own = slice(self.start, self.start + self.num_tokens)
        unit_BTC = x_BNC[:, own].float() * inverse_norm_BN[:, own, None]
        return self.mean(unit_BTC).square().sum(dim=-1).clamp(max=EQUAL_TOKENS)

    def choose(self, score_BS: Tensor, count_BK: Tensor) -> Tensor:
        """Return the best windows of each kind, bool [B, S]; equal ones in ``order_BS``.

        Args:
            score_BS: higher is better; NaN counts as the lowest score.
            count_BK: long, the number of chosen windows of each kind.
        """
        places = score_BS.shape[1]
        place_BS, _ = topk_valid(
            score_BS.gather(1, self.order_BS),
            TracedCounts(self.valid_BS.sum(dim=1), places),
            valid_BN=self.valid_BS.gather(1, self.order_BS),
        )
        best_BS = self.order_BS.gather(1, place_BS)
        kind_BS1 = self.kind_BS.gather(1, best_BS)[..., None]
        own_BSK = kind_BS1 == torch.arange(KINDS, device=score_BS.device)
        within_BSK = own_BSK.long().cumsum(dim=1) <= count_BK[:, None]
        chosen_BS = (own_BSK & within_BSK).any(dim=2) & self.valid_BS.gather(1, best_BS)
        return torch.zeros_like(self.valid_BS).scatter(1, best_BS, chosen_BS)


def _last(axis: _Axis, canvas: int) -> Tensor:
    """Return bool [B, X], True for the last cell of each part."""
    cell_X1 = torch.arange(canvas, device=axis.count_B.device)[:, None]
    own_BXP = (cell_X1 == axis.last_BP[:, None]) & (axis.length_BP > 0)[:, None]
    return own_BXP.any(dim=2)


def _spread_orders(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return the order of windows of each grid up to a size, long [rows * columns, S].

    Windows are numbered in the largest grid.
    """
    places = np.arange(rows * columns).reshape(rows, columns)
    orders = []
    for height in range(1, rows + 1):
        for width in range(1, columns + 1):
            own = places[:height, :width].ravel()[spread_order(height, width)]
            orders.append(np.concatenate([own, np.setdiff1d(places, own)]))
    return torch.from_numpy(np.array(orders, dtype=np.int64)).to(device)


def spread_token_table(height: int, width: int) -> Tensor:
    """Return the rows of :func:`tokendetr.tokens.spread_tokens` for each real size of a level.

    They are long [height * width, height * width]; that of (h, w) is row ``(h - 1) * width + w -
    1``.
    """
    return torch.from_numpy(
        np.array(
            [
                spread_tokens_of_size((rows, columns), (height, width))
                for rows in range(1, height + 1)
                for columns in range(1, width + 1)
            ],
            dtype=np.int64,
        )
    )


def merged_window_table(height: int, width: int, merged: MergedWindows) -> tuple[Tensor, int]:
    """Return the number of merged windows of each kind, and the most tokens that can be left.

    The numbers are for each real size of a level, long [height * width, K] in the order of
    :func:`spread_token_table`.

    Args:
        height: rows of the level.
        width: columns of the level.
        merged: returns the merged windows of one size.
    """
    table = np.zeros((height * width, KINDS), dtype=np.int64)
    most = 0
    for rows in range(1, height + 1):
        for columns in range(1, width + 1):
            numbers = merged(rows, columns)
            low_row, low_column = (min(shape[axis] for shape in numbers) for axis in (0, 1))
            left = rows * columns
            for (window_rows, window_columns), number in numbers.items():
                kind = 2 * (window_rows > low_row) + (window_columns > low_column)
                table[(rows - 1) * width + columns - 1, kind] = number
                left -= number * (window_rows * window_columns - 1)
            most = max(most, left)
    return torch.from_numpy(table), most
