"""Draw W, the matrix that maps all tokens to the reduced ones, as a heat map for each row.

Source: Token Transforming, arXiv 2506.05709, Figure 5.
"""

import math

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from tokendetr.encoder.trace import ReductionTrace
from tokendetr.tokens import Mix

__all__ = ["draw_mixing", "shared_tokens", "typical_tokens"]

_COLUMNS = 5
_GAP = 4


def typical_tokens(weight_KN: Tensor, count: int) -> list[int]:
    """Return the indices of the reduced tokens that combine the most tokens, in descending order.

    The number of tokens that a row combines is 1 / (sum of its squared shares).

    Args:
        weight_KN: rows of W, each summing to 1 (or 0, for places without a token).
        count: maximum number of indices.
    """
    gathered_K = weight_KN.sum(dim=1).square() / weight_KN.square().sum(dim=1).clamp_min(1e-12)
    return gathered_K.argsort(descending=True, stable=True)[:count].tolist()


def shared_tokens(weight_KN: Tensor) -> float:
    """Return the share of the tokens that contribute to more than one reduced token.

    A coefficient counts if it is above 1 % of its row's largest.

    Args:
        weight_KN: rows of W.
    """
    counted_KN = weight_KN > 0.01 * weight_KN.amax(dim=1, keepdim=True).clamp_min(1e-12)
    return float((counted_KN.sum(dim=0) > 1).float().mean())


def draw_mixing(
    image_HWC: NDArray[np.uint8], reduction: ReductionTrace, *, count: int = 14, width: int = 224
) -> Image.Image:
    """Draw the image with numbered reduced tokens, and the row of W of each.

    Args:
        image_HWC: RGB uint8, the model's input; tokens are square and may extend beyond it.
        reduction: the recorded reduction of one image.
        count: maximum number of rows to draw.
        width: width of each tile in pixels.

    Raises:
        ValueError: the tokens do not form a grid.
    """
    if reduction.grid is None or not isinstance(reduction.token_map, Mix):
        raise ValueError(f"the tokens of block {reduction.block} form no grid to draw them on")
    rows, columns = reduction.grid
    side = math.ceil(max(image_HWC.shape[0] / rows, image_HWC.shape[1] / columns))
    canvas_HWC = np.full((rows * side, columns * side, 3), 128, np.uint8)
    canvas_HWC[: image_HWC.shape[0], : image_HWC.shape[1]] = image_HWC
    size = (width, round(width * rows / columns))
    resized = Image.fromarray(canvas_HWC).resize(size, Image.Resampling.BILINEAR)
    weight_KN = reduction.token_map.weights_BKN()[0].detach().float().cpu()
    chosen = typical_tokens(weight_KN, count)
    anchor_K = reduction.token_map.anchor_BK[0].tolist()
    tiles = [_numbered(resized, [anchor_K[row] for row in chosen], reduction.grid)]
    gray_HW1 = np.asarray(resized, np.float32).mean(axis=2, keepdims=True)
    for row in chosen:
        share_HW = (weight_KN[row] / weight_KN[row].max().clamp_min(1e-12)).view(rows, columns)
        tiles.append(_heat(gray_HW1, share_HW.numpy(), size))
    return _sheet(tiles, size)


def _numbered(image: Image.Image, tokens: list[int], grid: tuple[int, int]) -> Image.Image:
    """Return the image with a frame and a number at each token."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    height, width = drawn.height / grid[0], drawn.width / grid[1]
    for number, token in enumerate(tokens, start=1):
        row, column = divmod(token, grid[1])
        corner = column * width, row * height
        pen.rectangle((*corner, corner[0] + width - 1, corner[1] + height - 1), outline="yellow")
        pen.text((corner[0] + 2, corner[1]), str(number), fill="yellow")
    return drawn


def _heat(
    gray_HW1: NDArray[np.float32], share_HW: NDArray[np.float32], size: tuple[int, int]
) -> Image.Image:
    enlarged = Image.fromarray(share_HW).resize(size, Image.Resampling.NEAREST)
    color_HW3 = matplotlib.colormaps["inferno"](np.asarray(enlarged))[..., :3]
    return Image.fromarray((0.3 * gray_HW1 + 0.7 * 255 * color_HW3).astype(np.uint8))


def _sheet(tiles: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    lines = -(-len(tiles) // _COLUMNS)
    step = size[0] + _GAP, size[1] + _GAP
    sheet = Image.new("RGB", (_COLUMNS * step[0] + _GAP, lines * step[1] + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        corner = _GAP + number % _COLUMNS * step[0], _GAP + number // _COLUMNS * step[1]
        sheet.paste(tile, corner)
        if number:
            pen.text((corner[0] + 3, corner[1] + 1), str(number), fill="white")
    return sheet
