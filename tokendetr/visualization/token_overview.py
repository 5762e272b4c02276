"""Draw an image, its tokens in each layer, and its detections in one sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tokendetr.encoder.layer_tokens import LayerTokens
from tokendetr.encoder.trace import ForwardTrace
from tokendetr.tokens import LevelLayout
from tokendetr.visualization.boxes import DrawnBox, draw_boxes
from tokendetr.visualization.token_tiles import (
    FRAME,
    Tile,
    base_tile,
    density,
    fitting_width,
    frames,
)
from tokendetr.visualization.tokens import groups_of_layers, layer_names

__all__ = ["draw_overview"]

_WIDTH = 320
_GAP = 8
_TITLE = 22
_COLUMNS = 4
_LEGEND = "bright: queries of their own; framed: one query together; dark: few queries, or none"


def draw_overview(
    image_HWC: NDArray[np.uint8],
    forward: ForwardTrace,
    boxes: Sequence[DrawnBox],
    *,
    image: int = 0,
) -> Image.Image:
    """Draw the image, the tokens of each distinct layer, and the detections.

    In a layer's tile, brightness is the share of queries among an area's tokens, over all levels;
    merged tokens of the finest level that has any are framed.

    Args:
        image_HWC: RGB uint8, the image that the model was run on, of any size.
        forward: the recorded pass of the encoder or of a stage of the backbone.
        boxes: detections, the best first, in pixels of ``image_HWC``.
        image: index of the image in the recorded batch.
    """
    width = fitting_width(image_HWC, _WIDTH)
    base_HWC = base_tile(image_HWC, width)
    scale = width / image_HWC.shape[1]
    tiles = [("image", draw_boxes(image_HWC, (), scale=scale))]
    kind = "layer" if forward.name == "encoder" else "block"
    for numbers, tokens in groups_of_layers(forward, image):
        total = sum(forward.layout.valid_counts[image])
        share = int(tokens.anchor_N.sum()) / max(total, 1)
        name = layer_names(numbers).replace("layer", kind)
        tile = _layer_tile(base_HWC, tokens, forward.layout).astype(np.uint8)
        tiles.append((f"{name}: {share:.0%} of the tokens", Image.fromarray(tile)))
    tiles.append(("detections", draw_boxes(image_HWC, boxes, scale=scale)))
    return _in_rows(tiles)


def _layer_tile(base_HWC: Tile, tokens: LayerTokens, layout: LevelLayout) -> Tile:
    """Darken an image where few tokens are queries, and frame the merged ones."""
    share_HW = density(base_HWC, tokens, layout)
    bright_HW = (0.12 + 0.88 * np.sqrt(share_HW)).astype(np.float32)
    tile: Tile = base_HWC * bright_HW[..., None]
    for level in range(layout.num_levels):
        framed = frames(base_HWC, tokens, layout, level)
        if framed.any():
            tile[framed] = 0.5 * tile[framed] + 0.5 * FRAME
            break
    return tile


def _in_rows(tiles: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Arrange tiles of one size with their titles in rows of nearly equal length."""
    rows = -(-len(tiles) // _COLUMNS)
    columns = -(-len(tiles) // rows)
    width, height = tiles[0][1].size
    step_x, step_y = width + _GAP, height + _TITLE + _GAP
    size = columns * step_x + _GAP, rows * step_y + _GAP + _TITLE
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for number, (title, tile) in enumerate(tiles):
        x = _GAP + number % columns * step_x
        y = _GAP + number // columns * step_y
        pen.text((x, y), title, fill="black", font=font)
        sheet.paste(tile.resize((width, height)), (x, y + _TITLE))
    pen.text((_GAP, size[1] - _TITLE), _LEGEND, fill="black", font=font)
    return sheet
