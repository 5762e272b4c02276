"""Position bias of reduced tokens on a map: relative positions and windows.

Shapes: B image, N token, C channel, M head, D head width, S side of the map or of a window.
"""

from typing import Any

import torch
from detectron2.modeling.backbone.utils import get_rel_pos
from torch import Tensor

from token_transforming.attention import NOT_A_KEY


def grid_positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the row and column of every cell of a map, row by row, long [1, N, 2]."""
    height, width = grid
    place_N = torch.arange(height * width, device=device)
    return torch.stack([place_N // width, place_N % width], dim=-1)[None]


def map_bias(
    block: Any, query_BMND: Tensor, position_BN2: Tensor, grid: tuple[int, int]
) -> Tensor | None:
    """Return the bias of a block of detectron2's ViT for tokens at given positions.

    Relative positions are looked up at the offsets between the tokens; tokens of different windows
    do not attend to each other.

    Args:
        block: the block, with ``window_size`` and ``attn``.
        query_BMND: queries, not scaled.
        position_BN2: long, row and column of each token, B may be 1.
        grid: rows and columns of the whole map.

    Returns:
        Broadcastable to [B, M, N, N]; None if there is nothing to add.
    """
    side = int(getattr(block, "window_size", 0))
    bias = None
    if getattr(block.attn, "use_rel_pos", False):
        place_BN2 = position_BN2 % side if side else position_BN2
        sides = (side, side) if side else grid
        tables = (block.attn.rel_pos_h, block.attn.rel_pos_w)
        rows, columns = (
            _axis_bias(query_BMND, place_BN2[..., axis], sides[axis], tables[axis])
            for axis in (0, 1)
        )
        bias = rows + columns
    if side:
        window_BN2 = position_BN2 // side
        apart_BNN = (window_BN2[:, :, None] != window_BN2[:, None]).any(dim=-1)
        mask = query_BMND.new_zeros(apart_BNN.shape).masked_fill(apart_BNN, NOT_A_KEY)[:, None]
        bias = mask if bias is None else bias + mask
    return bias


def _axis_bias(query_BMND: Tensor, at_BN: Tensor, side: int, table: Tensor) -> Tensor:
    """Return the bias of one axis, [B, M, N, N]."""
    batch, heads, tokens, _ = query_BMND.shape
    at_BN = at_BN.expand(batch, -1)
    offset_BNSD = get_rel_pos(side, side, table)[at_BN].to(query_BMND.dtype)
    logit_BMNS = torch.einsum("bmnd,bnsd->bmns", query_BMND, offset_BNSD)
    return logit_BMNS.gather(3, at_BN[:, None, None].expand(-1, heads, tokens, -1))
