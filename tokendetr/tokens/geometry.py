"""Points and boxes of the cells of a pyramid.

Shapes: B image, N all tokens (finest level first, row by row), L level, H and W a level's height
    and width, S cells of a row or a column.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokendetr.tokens.constants import kept_tensors

LevelShapes = tuple[tuple[int, int], ...]


def valid_ratios_of(masks: Sequence[Tensor]) -> Tensor:
    """Return the real part of each level's (width, height), [B, L, 2].

    Args:
        masks: per level, bool [B, H, W] with True = padding at the right and the bottom.

    Source: ``get_valid_ratio`` of Deformable DETR and detrex.
    """
    ratios = []
    for mask_BHW in masks:
        height, width = mask_BHW.shape[1:]
        valid_height = (~mask_BHW[:, :, 0]).sum(dim=1).float() / height
        valid_width = (~mask_BHW[:, 0, :]).sum(dim=1).float() / width
        ratios.append(torch.stack([valid_width, valid_height], dim=-1))
    return torch.stack(ratios, dim=1)


def reference_points(level_shapes: LevelShapes, valid_ratios_BL2: Tensor) -> Tensor:
    """Return each token's center in every level's normalized (x, y), [B, N, L, 2].

    Args:
        level_shapes: ``(height, width)`` of each level.
        valid_ratios_BL2: real part of each level's (width, height).

    Source: ``get_reference_points`` of Deformable DETR and detrex.
    """
    points, device = [], valid_ratios_BL2.device
    for level, (height, width) in enumerate(level_shapes):
        y_H = torch.linspace(0.5, height - 0.5, height, dtype=torch.float32, device=device)
        x_W = torch.linspace(0.5, width - 0.5, width, dtype=torch.float32, device=device)
        ratio_B2 = valid_ratios_BL2[:, level]
        y_BH = y_H / (ratio_B2[:, 1, None] * height)
        x_BW = x_W / (ratio_B2[:, 0, None] * width)
        shape = (valid_ratios_BL2.shape[0], height, width)
        pair = (x_BW[:, None, :].expand(shape), y_BH[:, :, None].expand(shape))
        points.append(torch.stack(pair, dim=-1).flatten(1, 2))
    return torch.cat(points, dim=1)[:, :, None] * valid_ratios_BL2[:, None]


def proposals(level_shapes: LevelShapes, valid_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes on all tokens and a mask of the usable ones; see :meth:`LevelLayout.proposals`.

    Args:
        level_shapes: ``(height, width)`` of each level.
        valid_BN: bool, True where a token is real.
    """
    boxes, inner, device, start = [], [], valid_BN.device, 0
    for level, (height, width) in enumerate(level_shapes):
        valid_BHW = valid_BN[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        rows_B1 = valid_BHW[:, :, 0].sum(dim=1, keepdim=True)
        columns_B1 = valid_BHW[:, 0, :].sum(dim=1, keepdim=True)
        y_H, x_W = torch.arange(height, device=device), torch.arange(width, device=device)
        y_BH, x_BW = (y_H.float() + 0.5) / rows_B1, (x_W.float() + 0.5) / columns_B1
        shape, side = (valid_BN.shape[0], height, width), 0.05 * 2.0**level
        size = torch.full(shape, side, device=device)
        box = (x_BW[:, None, :].expand(shape), y_BH[:, :, None].expand(shape), size, size)
        boxes.append(torch.stack(box, dim=-1).flatten(1, 2))
        inner_BH, inner_BW = _inner(y_H, rows_B1), _inner(x_W, columns_B1)
        inner_BHW = inner_BH[:, :, None] & inner_BW[:, None, :]
        inner.append((inner_BHW if side < 0.99 else torch.zeros_like(inner_BHW)).flatten(1))
    boxes_BN4 = torch.cat(boxes, dim=1)
    usable_BN = torch.cat(inner, dim=1) & valid_BN
    logits_BN4 = torch.log(boxes_BN4 / (1 - boxes_BN4))
    return logits_BN4.masked_fill(~usable_BN[..., None], float("inf")), usable_BN


def valid_tokens(level_shapes: LevelShapes, sizes_BL2: Tensor) -> Tensor:
    """Return bool [B, N], True for real tokens, those at the upper left of each level.

    Args:
        level_shapes: ``(height, width)`` of each level.
        sizes_BL2: long, the real ``(height, width)`` of each image and level.
    """
    masks = []
    for level, (height, width) in enumerate(level_shapes):
        valid_BH = torch.arange(height, device=sizes_BL2.device) < sizes_BL2[:, level, 0, None]
        valid_BW = torch.arange(width, device=sizes_BL2.device) < sizes_BL2[:, level, 1, None]
        masks.append((valid_BH[:, :, None] & valid_BW[:, None, :]).flatten(1))
    return torch.cat(masks, dim=1)


@kept_tensors
def token_levels(level_sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the level of each token, long [N], given the tokens of each level."""
    sizes_L = torch.tensor(level_sizes, device=device)
    levels_L = torch.arange(len(level_sizes), device=device)
    return levels_L.repeat_interleave(sizes_L, output_size=sum(level_sizes))


def _inner(cell_S: Tensor, cells_B1: Tensor) -> Tensor:
    """Return bool [B, S], True if a cell's center is in (0.01, 0.99) of its image's cells.

    In a row of 50 cells, as images of 800 pixels have them, the outer centers are at 0.01 and 0.99
    exactly. Integers decide this alike in every runtime, and as a correctly rounded division does.
    """
    center_S = 50 * (2 * cell_S + 1)
    return (center_S > cells_B1) & (center_S < 99 * cells_B1)
