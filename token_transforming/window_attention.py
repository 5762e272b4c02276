"""Attention within windows, with its biases: relative positions, regions, and token sizes.

Shapes: G windows of the whole batch, W windows of one image, T tokens of a window, M head, D head
width, Y and X rows and columns of a table of relative positions, R those of a square one.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from token_transforming.attention import attend, attend_packed, can_pack, size_bias
from token_transforming.windows import (
    APART,
    position_table_bias,
    resized_table,
    window_table_bias,
)
from tokendetr.layers.windows import Size, positions


@dataclass(frozen=True)
class WindowLogits:
    """Biases of the logits of all windows of a batch.

    Attributes:
        table_MYX: [M, 2h - 1, 2w - 1], bias of (query - key) offsets in a full window of h x w.
        window: rows and columns of the (reduced) windows.
        position_GT2: long, positions of the tokens on the map, to look up the table; None: the
            table is resized to the window.
        region_GT: int32; only tokens with equal numbers attend to each other; None: all of a
            window.
        size_GT: number of original tokens in each; None: 1.
    """

    table_MYX: Tensor
    window: Size
    position_GT2: Tensor | None
    region_GT: Tensor | None
    size_GT: Tensor | None

    def bias(self) -> Tensor:
        """Return the sum of all biases, broadcastable to [G, M, T, T]."""
        if self.position_GT2 is not None:
            bias = position_table_bias(self.table_MYX, self.position_GT2)
        else:
            bias = window_table_bias(self.table_MYX, self.window)
        if self.region_GT is not None:
            apart_GTT = self.region_GT[:, None, :] != self.region_GT[:, :, None]
            bias = bias + (apart_GTT * APART)[:, None]
        keys = size_bias(self.size_GT, None)
        return bias if keys is None else bias + keys

    def attend(
        self, query_GMTD: Tensor, key_GMTD: Tensor, value_GMTD: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """Return the attention's output, [G, M, T, D].

        Packed attention, if possible, stores nothing of size [G, M, T, T].
        """
        heads = query_GMTD, key_GMTD, value_GMTD
        if not can_pack(query_GMTD, dropout):
            return attend(*heads, scale=scale, bias=self.bias(), dropout=dropout)
        if self.position_GT2 is not None:
            table_MYX, position_GT2 = self.table_MYX, self.position_GT2
        else:
            table_MYX = square_table(resized_table(self.table_MYX, self.window))
            place_1T2 = positions(self.window, self.window, query_GMTD.device)
            position_GT2 = place_1T2.expand(query_GMTD.shape[0], -1, -1)
        return attend_packed(
            *heads,
            scale=scale,
            segment_BN=self.region_GT,
            position_BN2=position_GT2.int(),
            bias_table_MRR=table_MYX,
            key_bias_BN=None if self.size_GT is None else self.size_GT.log(),
        )


def square_table(table_MYX: Tensor) -> Tensor:
    """Pad a table to a square, with offsets that do not occur."""
    rows, columns = table_MYX.shape[1:]
    if rows == columns:
        return table_MYX
    more_y, more_x = max(0, columns - rows) // 2, max(0, rows - columns) // 2
    return F.pad(table_MYX, (more_x, more_x, more_y, more_y))
