"""Surroundings of a token: the mean of its block, and the next level's token at that place.

Both live on the grid of blocks of 2 x 2 tokens, which is the grid of the next level, so that a
linear map of them costs a quarter of one of the tokens themselves. From there they are spread to
the tokens by bilinear interpolation, which any linear map commutes with.

Padding takes no part: an image's surroundings do not depend on its batch.

Shapes: B image, N all tokens, L level, H and W the grid of the next level, C channel, D any
channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.tokens import LevelLayout

__all__ = ["spread", "surroundings"]


def surroundings(layout: LevelLayout, level: int, x_BNC: Tensor) -> Tensor:
    """Return the surroundings of a level's blocks of 2 x 2 tokens.

    Args:
        layout: geometry of the batch.
        level: any but the last.
        x_BNC: the tokens of all levels.

    Returns:
        [B, H, W, 2 C]: the mean of the block's real tokens, and the next level's token in its
        place; 0 where nothing is real.

    Raises:
        ValueError: the next level is not half as high and wide.
    """
    (height, width), following = layout.level_shapes[level : level + 2]
    if following != ((height + 1) // 2, (width + 1) // 2):
        raise ValueError(
            f"a bypass with context needs levels that halve: level {level} has {height} x {width} "
            f"tokens, the next {following[0]} x {following[1]}; use context=False "
            "(tokendetr sparsify --no-context)"
        )
    own_BCHW = _image(layout.grid(x_BNC, level))
    next_BHWC = layout.grid(x_BNC, level + 1)
    if not layout.may_have_padding:
        return torch.cat([_block_mean(own_BCHW).permute(0, 2, 3, 1), next_BHWC], dim=-1)
    padding_BHW1 = layout.grid(layout.padding_BN, level + 1).unsqueeze(-1)
    share_B1HW = _block_share(layout, level, x_BNC.dtype)
    real_BCHW = own_BCHW.masked_fill(_image(layout.grid(layout.padding_BN, level)[..., None]), 0.0)
    # Means over whole blocks, padding as 0, divided by the share of a block that is real.
    mean_BCHW = _block_mean(real_BCHW) / share_B1HW.clamp_min(0.25)
    return torch.cat(
        [mean_BCHW.permute(0, 2, 3, 1), next_BHWC.masked_fill(padding_BHW1, 0.0)], dim=-1
    )


def spread(layout: LevelLayout, level: int, y_BHWD: Tensor) -> Tensor:
    """Return features [B, H, W, D] of a level's blocks at its tokens, [B, N_level, D].

    Bilinear between the centers of blocks that hold a real token.
    """
    height, width = layout.level_shapes[level]
    y_BDHW = _image(y_BHWD)
    if layout.may_have_padding:
        real_B1HW = (_block_share(layout, level, y_BHWD.dtype) > 0).to(y_BHWD.dtype)
        weight_B1HW = _doubled(real_B1HW).clamp_min(1e-3)  # next to a real block: 1/16 or more
        spread_BDHW = _doubled(y_BDHW * real_B1HW) / weight_B1HW
    else:
        spread_BDHW = _doubled(y_BDHW)
    return spread_BDHW[:, :, :height, :width].permute(0, 2, 3, 1).flatten(1, 2)


def _image(x_BHWC: Tensor) -> Tensor:
    """Return a grid as [B, C, H, W] (a view)."""
    return x_BHWC.permute(0, 3, 1, 2)


def _block_mean(x_BCHW: Tensor) -> Tensor:
    return F.avg_pool2d(x_BCHW, 2, ceil_mode=True)


def _block_share(layout: LevelLayout, level: int, dtype: torch.dtype) -> Tensor:
    """Return the real share of each block's tokens [B, 1, H, W]."""
    return _block_mean(_image(layout.grid(layout.valid_BN, level)[..., None].to(dtype)))


def _doubled(x_BCHW: Tensor) -> Tensor:
    """Return a grid twice as fine, by bilinear interpolation."""
    height, width = x_BCHW.shape[2:]
    size = (2 * height, 2 * width)
    return F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)
