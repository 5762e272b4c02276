"""Draw and count what each encoder layer does with the tokens of one image.

Every layer is a row, every feature level a column; consecutive layers with the same tokens share a
row. A token that is a query of its own shows the image; tokens merged into one query show their
mean color inside a frame; a token that is no query in this layer (dropped, or absorbed by others)
is darkened. If there are several levels, the last column shows the number of queries per area over
all of them. Heat maps above the layers show the scores that tokens were selected by. Below the
layers there are heat maps of the decoder's attention and, if layers differ, of the number of layers
that update a token. A legend is at the bottom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from tokendetr.encoder.layer_tokens import SKIPPED, LayerTokens, describe, layer_tokens
from tokendetr.encoder.trace import ForwardTrace
from tokendetr.tokens import LevelLayout
from tokendetr.visualization.boxes import DrawnBox, draw_boxes
from tokendetr.visualization.token_tiles import (
    FRAME,
    Tile,
    base_tile,
    density,
    enlarge,
    fitting_width,
    heat,
    level_tile,
    shares,
)

__all__ = ["LayerGroup", "draw_tokens", "groups_of_layers", "layer_names", "legend_height"]

_GAP = 6
_LABEL = 16
_LEGEND = (
    ((255, 255, 255), "a query of its own: the image"),
    (tuple(int(value) for value in FRAME), "one query together: mean color in a frame"),
    ((40, 40, 40), "no query in this layer: dark"),
    ((250, 190, 60), "heat maps: low is dark, high is bright"),
)

Row = tuple[list[str], list[Tile]]
"""Labels and tiles of a row of the drawing."""
Scored = tuple[list[int], str, Tensor]
"""Numbers of the layers that have a score, none for maps of the whole pass; its name; [B, N]."""
LayerGroup = tuple[list[int], LayerTokens]
"""Numbers of consecutive layers, from 1, and the tokens that they share."""


def groups_of_layers(forward: ForwardTrace, image: int = 0) -> list[LayerGroup]:
    """Group consecutive layers that work on the same tokens."""
    groups: list[LayerGroup] = []
    for number, layer in enumerate(forward.layers, start=1):
        tokens = layer_tokens(layer.token_map, forward.layout, image)
        if groups and _same(groups[-1][1], tokens):
            groups[-1][0].append(number)
        else:
            groups.append(([number], tokens))
    return groups


def _same(one: LayerTokens, other: LayerTokens) -> bool:
    return np.array_equal(one.state_N, other.state_N) and np.array_equal(one.query_N, other.query_N)


def layer_names(numbers: Sequence[int]) -> str:
    """Return the name of a group of layers: ``layer 1`` or ``layers 1-3``."""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    return f"layers {numbers[0]}-{numbers[-1]}"


def draw_tokens(
    image_HWC: NDArray[np.uint8],
    forward: ForwardTrace,
    *,
    image: int = 0,
    width: int = 256,
    boxes: Sequence[DrawnBox] = (),
) -> Image.Image:
    """Draw all layers and levels of one image.

    Args:
        image_HWC: RGB uint8, the image that the model was run on, of any size.
        forward: the recorded pass (:func:`tokendetr.encoder.forward_context.record_tokens`).
        image: index of the image in the recorded batch.
        width: width of each tile in pixels; less for narrow images, whose tiles would be very high.
        boxes: boxes to draw over every tile, without labels, in pixels of ``image_HWC``.
    """
    width = fitting_width(image_HWC, width)
    base_HWC = base_tile(image_HWC, width)
    layout = forward.layout
    rows = _map_rows(base_HWC, forward, image, before=True)
    used_N = np.zeros(layout.num_tokens, dtype=np.int64)
    reports = describe(forward, image)
    for numbers, tokens in groups_of_layers(forward, image):
        used_N += len(numbers) * (tokens.state_N != SKIPPED)
        rows.append(_layer_row(base_HWC, layout, tokens, numbers, reports[numbers[0] - 1]))
    if np.any((used_N > 0) & (used_N < len(forward.layers))):
        share_N = torch.from_numpy(used_N / len(forward.layers))
        rows.append(_heat_row(base_HWC, layout, "layers", share_N))
    rows += _map_rows(base_HWC, forward, image, before=False)
    scale = width / image_HWC.shape[1]
    plain = [DrawnBox(box.xyxy_px, "", box.color, box.is_truth) for box in boxes]
    return _assemble(rows, base_HWC.shape[1], base_HWC.shape[0], plain, scale)


def _layer_row(
    base_HWC: Tile,
    layout: LevelLayout,
    tokens: LayerTokens,
    numbers: Sequence[int],
    counts: dict[str, object],
) -> Row:
    """Return the tiles of all levels for layers that work on the same tokens."""
    tiles = [level_tile(base_HWC, tokens, layout, level) for level in range(layout.num_levels)]
    levels = counts["levels"]
    assert isinstance(levels, list)
    labels = [
        f"{layer_names(numbers)}, level {number}: {level['queries']} of {level['tokens']}"
        for number, level in enumerate(levels, start=1)
    ]
    if layout.num_levels > 1:
        per_area = density(base_HWC, tokens, layout)
        tiles.append(heat(base_HWC, per_area / max(float(per_area.max()), 1e-6)))
        labels.append(f"queries per area: {counts['queries']} of {counts['tokens']}")
    return labels, tiles


def _assemble(
    rows: list[Row], width: int, height: int, boxes: Sequence[DrawnBox], scale: float
) -> Image.Image:
    step_x, step_y = width + _GAP, height + _GAP + _LABEL
    columns = len(rows[0][1])
    sheet_width = columns * step_x + _GAP
    bottom = len(rows) * step_y + _GAP
    sheet = Image.new("RGB", (sheet_width, bottom + legend_height(sheet_width)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (labels, tiles) in enumerate(rows):
        for column, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
            corner = _GAP + column * step_x, _GAP + row * step_y
            pen.text(corner, label, fill="black")
            drawn = Image.fromarray(tile.astype(np.uint8))
            if boxes:
                drawn = draw_boxes(np.asarray(drawn), [_at(box, scale) for box in boxes], line_px=1)
            sheet.paste(drawn, (corner[0], corner[1] + _LABEL))
    for x, y, color, text in _legend_places(sheet_width):
        swatch = (x, bottom + y + 2, x + 10, bottom + y + 12)
        pen.rectangle(swatch, fill=color, outline="black")
        pen.text((x + 15, bottom + y), text, fill="black")
    return sheet


def _at(box: DrawnBox, scale: float) -> DrawnBox:
    left, top, right, bottom = (value * scale for value in box.xyxy_px)
    return DrawnBox((left, top, right, bottom), box.label, box.color, box.is_truth)


def legend_height(width: int) -> int:
    """Return the height of the legend in pixels for a drawing of this width."""
    return max(y for _, y, _, _ in _legend_places(width)) + _LABEL + _GAP


def _legend_places(width: int) -> Iterator[tuple[int, int, tuple[int, ...], str]]:
    """Yield left, top, color and text of the legend's entries, wrapped at the drawing's width."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    x, y = _GAP, 0
    for color, text in _LEGEND:
        needed = round(pen.textlength(text)) + 30
        if x > _GAP and x + needed > width:
            x, y = _GAP, y + _LABEL
        yield x, y, color, text
        x += needed


def _map_rows(base_HWC: Tile, forward: ForwardTrace, image: int, *, before: bool) -> list[Row]:
    """Return heat maps of the layers' scores (``before``) or of the pass's maps.

    Everything that was recorded with one number per token of the whole pyramid is drawn;
    consecutive layers with the same scores share a row.
    """
    layout = forward.layout
    later: list[Scored] = [([], name, value_BN) for name, value_BN in forward.maps.items()]
    named = _scores(forward) if before else later
    rows = []
    for numbers, name, value_BN in named:
        if value_BN.shape != layout.valid_BN.shape:
            continue
        value_N, valid_N = value_BN[image].float().cpu(), layout.valid_BN[image].cpu()
        sizes = layout.level_sizes
        # Scores are compared across levels; the range of attention differs between levels.
        spans = [layout.num_tokens] if before else sizes
        pairs = zip(value_N.split(spans), valid_N.split(spans), strict=True)
        share_N = torch.cat([shares(values, valid) for values, valid in pairs])
        title = f"{name} of {layer_names(numbers)}" if numbers else name
        rows.append(_heat_row(base_HWC, layout, title, share_N))
    return rows


def _scores(forward: ForwardTrace) -> list[Scored]:
    """Return every score with the consecutive layers that share it."""
    found: list[Scored] = []
    for number, layer in enumerate(forward.layers, start=1):
        for name, score_BN in layer.scores.items():
            for numbers, other, known_BN in found:
                if other == name and known_BN.shape == score_BN.shape:
                    same = torch.equal(known_BN.nan_to_num(), score_BN.nan_to_num())
                    if same and numbers[-1] == number - 1:
                        numbers.append(number)
                        break
            else:
                found.append(([number], name, score_BN))
    return found


def _heat_row(base_HWC: Tile, layout: LevelLayout, name: str, share_N: Tensor) -> Row:
    """Return heat maps of a number in [0, 1] per token: each level's, and the maximum of all."""
    areas = [
        enlarge(share.view(shape).numpy(), *base_HWC.shape[:2])
        for share, shape in zip(share_N.split(layout.level_sizes), layout.level_shapes, strict=True)
    ]
    labels = [f"{name}, level {number}" for number in range(1, len(areas) + 1)]
    if len(areas) > 1:
        areas.append(np.max(areas, axis=0))
        labels.append(f"{name}, highest")
    return labels, [heat(base_HWC, area) for area in areas]
