"""One picture per image that tells the story: the image, its tokens by layer, what was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tokendetr.encoder.layer_tokens import LayerTokens
from tokendetr.encoder.trace import ForwardTrace
from tokendetr.tokens import LevelLayout
from tokendetr.visualization.boxes import DrawnBox, draw_boxes
from tokendetr.visualization.token_pictures import groups_of_layers, layer_names
from tokendetr.visualization.token_tiles import FRAME, Tile, base_tile, density, frames

__all__ = ["draw_story"]

_GAP = 8
_TITLE = 22
_COLUMNS = 4
_LEGEND = "bright: queries of their own; framed: one query together; dark: few queries, or none"


def draw_story(
    image_HWC: NDArray[np.uint8],
    forward: ForwardTrace,
    boxes: Sequence[DrawnBox],
    *,
    truth: Sequence[DrawnBox] = (),
    image: int = 0,
    width: int = 320,
    title: str = "",
) -> Image.Image:
    """Draw the image with its truth, what each distinct layer works on, and the detections.

    In a layer's tile an area is as bright as the share of its tokens, over all levels, that are
    queries of their own; merged tokens of the finest level that has some are framed.

    Args:
        image_HWC: the RGB picture that the model saw, of any size.
        forward: what the encoder, or a stage of the backbone, recorded.
        boxes: detections, the best first; in pixels of ``image_HWC``.
        truth: annotations.
        image: number of the picture in the recorded batch.
        width: of each tile, pixels.
        title: above the first tile instead of "image".
    """
    base_HWC = base_tile(image_HWC, width)
    scale = width / image_HWC.shape[1]
    tiles = [(title or "image", draw_boxes(image_HWC, truth, scale=scale))]
    kind = "layer" if forward.name == "encoder" else "block"
    for numbers, tokens in groups_of_layers(forward, image):
        total = sum(forward.layout.valid_counts[image])
        share = int(tokens.anchor_N.sum()) / max(total, 1)
        name = layer_names(numbers).replace("layer", kind)
        picture = _layer_tile(base_HWC, tokens, forward.layout).astype(np.uint8)
        tiles.append((f"{name}: {share:.0%} of the tokens", Image.fromarray(picture)))
    tiles.append(("detections", draw_boxes(image_HWC, boxes, scale=scale)))
    return _in_rows(tiles)


def _layer_tile(base_HWC: Tile, tokens: LayerTokens, layout: LevelLayout) -> Tile:
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
    """Tiles of one size under their titles, in rows that are as equally long as can be."""
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
