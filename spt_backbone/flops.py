"""Operations of a Swin or SPT backbone, computed from shapes.

Matrix products, convolutions and norms; a multiply-add counts 1, as in fvcore.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

_NORM_MACS = 5
"""fvcore's count per channel of a LayerNorm with scale and shift."""


@dataclass(frozen=True)
class BackboneShape:
    """The sizes of a Swin or SPT backbone that determine its cost.

    Attributes:
        embed_dim: channels of the first stage.
        depths: blocks of each stage.
        start_stage: first stage, from 1, that selects; None for a dense Swin.
        window_size: side of a window in tokens.
        container_length: slots of a container.
        patch_size: side of a patch in pixels.
        mlp_ratio: hidden width of the feed-forward networks over channels.
        out_stages: stages, from 1, whose output is normalized.
    """

    embed_dim: int
    depths: Sequence[int]
    start_stage: int | None = None
    window_size: int = 7
    container_length: int = 49
    patch_size: int = 4
    mlp_ratio: float = 4.0
    out_stages: Sequence[int] = field(default=(1, 2, 3, 4))

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return (height, width) in tokens of each stage."""
        grid = (ceil(height / self.patch_size), ceil(width / self.patch_size))
        grids = [grid]
        for _ in self.depths[1:]:
            grid = (ceil(grid[0] / 2), ceil(grid[1] / 2))
            grids.append(grid)
        return grids


def backbone_macs(
    shape: BackboneShape,
    height: int,
    width: int,
    ratios: Mapping[int, float] | None = None,
    *,
    window_padding: bool = True,
    project_all: bool = False,
) -> int:
    """Return the cost of one image.

    Args:
        shape: the backbone.
        height: of the image in pixels.
        width: likewise.
        ratios: by selecting stage, from 1, the share of the tokens that its blocks select; 1 for
            stages that are not given.
        window_padding: count the padding of windows at the border in dense stages.
        project_all: count the output projection for all tokens, as the paper's equation 9 does;
            otherwise for the selected ones, as it is computed here.
    """
    ratios = ratios or {}
    start = shape.start_stage or len(shape.depths) + 2
    grids = shape.grids(height, width)
    tokens = grids[0][0] * grids[0][1]
    total = tokens * shape.embed_dim * (3 * shape.patch_size**2 + _NORM_MACS)
    for stage, (grid, depth) in enumerate(zip(grids, shape.depths, strict=True), start=1):
        tokens, channels = grid[0] * grid[1], shape.embed_dim * 2 ** (stage - 1)
        per_token = 2 * _NORM_MACS * channels + int(2 * shape.mlp_ratio * channels**2)
        if stage < start:
            attention = _window_macs(shape, grid, channels, padded=window_padding)
        else:
            selected = ceil(ratios.get(stage, 1.0) * tokens)
            attention = tokens * channels + _packed_macs(
                shape, selected, channels, projected=tokens if project_all else None
            )
        total += depth * (tokens * per_token + attention)
        if stage + 1 == start:
            total += tokens * channels  # the first gate
        if stage in shape.out_stages:
            total += _NORM_MACS * tokens * channels
        if stage < len(grids):
            merged = grids[stage][0] * grids[stage][1]
            total += merged * 4 * channels * (_NORM_MACS + 2 * channels)
    return total


def backbone_parameters(shape: BackboneShape, num_heads: Sequence[int]) -> int:
    """Return the number of parameters.

    Args:
        shape: the backbone.
        num_heads: attention heads of each stage.
    """
    total = shape.embed_dim * (3 * shape.patch_size**2 + 3)
    start = shape.start_stage or len(shape.depths) + 2
    table = (2 * shape.window_size - 1) ** 2
    for stage, (depth, heads) in enumerate(zip(shape.depths, num_heads, strict=True), start=1):
        channels = shape.embed_dim * 2 ** (stage - 1)
        hidden = int(shape.mlp_ratio * channels)
        block = 4 * channels**2 + 4 * channels + 4 * channels + table * heads
        block += 2 * channels * hidden + hidden + channels
        block += channels + 1 if stage >= start else 0
        total += depth * block
        total += channels + 1 if stage + 1 == start else 0
        total += 2 * channels if stage in shape.out_stages else 0
        if stage < len(shape.depths):
            total += 8 * channels**2 + 8 * channels
    return total


def _window_macs(
    shape: BackboneShape, grid: tuple[int, int], channels: int, *, padded: bool
) -> int:
    """Return the cost of window attention, projections included."""
    side = shape.window_size
    tokens = grid[0] * grid[1]
    if padded:
        tokens = ceil(grid[0] / side) * ceil(grid[1] / side) * side**2
    return tokens * (4 * channels**2 + 2 * side**2 * channels)


def _packed_macs(
    shape: BackboneShape, selected: int, channels: int, *, projected: int | None
) -> int:
    """Return the cost of attention in containers, projections included."""
    length = shape.container_length
    slots = max(ceil(selected / length), 1) * length
    outputs = slots if projected is None else projected
    return slots * (3 * channels**2 + 2 * length * channels) + outputs * channels**2
