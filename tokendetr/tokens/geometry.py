"""Points and boxes of the cells of a pyramid.

Shapes: B image, N all tokens (finest level first, row by row), L level, H and W a level's height
    and width.
"""

import torch
from torch import Tensor

LevelShapes = tuple[tuple[int, int], ...]


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
    boxes, device, start = [], valid_BN.device, 0
    for level, (height, width) in enumerate(level_shapes):
        valid_BHW = valid_BN[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        y_H = torch.arange(height, dtype=torch.float32, device=device) + 0.5
        x_W = torch.arange(width, dtype=torch.float32, device=device) + 0.5
        y_BH = y_H / valid_BHW[:, :, 0].sum(dim=1, keepdim=True)
        x_BW = x_W / valid_BHW[:, 0, :].sum(dim=1, keepdim=True)
        shape = (valid_BN.shape[0], height, width)
        size = torch.full(shape, 0.05 * 2.0**level, device=device)
        box = (x_BW[:, None, :].expand(shape), y_BH[:, :, None].expand(shape), size, size)
        boxes.append(torch.stack(box, dim=-1).flatten(1, 2))
    boxes_BN4 = torch.cat(boxes, dim=1)
    usable_BN = ((boxes_BN4 > 0.01) & (boxes_BN4 < 0.99)).all(dim=-1) & valid_BN
    logits_BN4 = torch.log(boxes_BN4 / (1 - boxes_BN4))
    return logits_BN4.masked_fill(~usable_BN[..., None], float("inf")), usable_BN
