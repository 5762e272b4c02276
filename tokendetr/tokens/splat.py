"""Splat deformable attention onto tokens: the weight that each token receives.

Decoder attention maps and the importance of levels are made from it.

Shapes: B image, N all tokens (finest level first, row by row), Q query, M head, L level, P point,
    A tokens of one level, S its samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["smallest_covering_set", "splat_attention"]


@torch.no_grad()
def splat_attention(
    locations_BQMLP2: Tensor,
    weights_BQMLP: Tensor,
    level_shapes: Sequence[Sequence[int]],
    *,
    half_cell: bool = True,
) -> Tensor:
    """Distribute every sample's weight to the four tokens around it, in bilinear shares.

    With ``half_cell`` a token's mass is the sum of the factors by which the attention multiplies
    its value: ``grid_sample(align_corners=False)`` puts its center at ``(index + 0.5) / size``.
    Weight outside a level is lost, as in the attention, and locations that are not finite count
    nothing. Nothing here carries a gradient.

    Args:
        locations_BQMLP2: normalized ``(x, y)``, (0, 0) the upper left and (1, 1) the lower right
            corner of a level.
        weights_BQMLP: weight of each sample; 0 excludes a query or a head.
        level_shapes: ``(height, width)`` of each level, finest first.
        half_cell: False puts a token's center at ``index / size``, as Sparse DETR's published code
            does, which shifts the map by half a token to the lower right.

    Returns:
        float32 (float64 for float64 weights) [B, N], summed over queries, heads and points in
        float64, so that the order hardly matters.

    Raises:
        ValueError: shapes do not fit each other.

    Source: Sparse DETR, arXiv 2111.14330, appendix A.2. Differs: the half cell, which the paper
    leaves open.
    """
    _check(locations_BQMLP2, weights_BQMLP, level_shapes)
    shift = 0.5 if half_cell else 0.0
    masses = []
    for level, (height, width) in enumerate(level_shapes):
        location_BS2 = locations_BQMLP2[:, :, :, level].flatten(1, 3).double()
        weight_BS = weights_BQMLP[:, :, :, level].flatten(1).double()
        finite_BS = location_BS2.isfinite().all(dim=-1)
        # Clamped: all places beyond the border lose their weight, and indices must fit integers.
        x_BS, y_BS = (
            torch.where(finite_BS, location_BS2[..., axis] * size - shift, -2.0).clamp(-2, size + 1)
            for axis, size in enumerate((width, height))
        )
        mass_BA = weight_BS.new_zeros(len(weight_BS), height * width)
        for row_BS, row_share_BS in _neighbors(y_BS):
            for column_BS, column_share_BS in _neighbors(x_BS):
                inside_BS = (row_BS >= 0) & (row_BS < height)
                inside_BS &= (column_BS >= 0) & (column_BS < width)
                share_BS = (weight_BS * row_share_BS * column_share_BS).where(inside_BS, 0.0)
                index_BS = (row_BS * width + column_BS).where(inside_BS, 0)
                mass_BA.scatter_add_(1, index_BS, share_BS)
        masses.append(mass_BA)
    wide = weights_BQMLP.dtype == torch.float64
    return torch.cat(masses, dim=1).to(torch.float64 if wide else torch.float32)


@torch.no_grad()
def smallest_covering_set(
    mass_BN: Tensor, fraction: float, *, valid_BN: Tensor | None = None
) -> Tensor:
    """Return the fewest tokens of each image that together carry a fraction of its mass.

    Args:
        mass_BN: not negative.
        fraction: of the mass of the valid tokens, in (0, 1].
        valid_BN: bool, True for tokens that may be chosen; None: all.

    Returns:
        bool [B, N]. Equal masses are chosen in order of position; tokens without mass are never
        chosen, so an image without mass has an empty set.

    Raises:
        ValueError: ``fraction`` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    mass_BN = mass_BN.double()
    if valid_BN is not None:
        mass_BN = mass_BN.where(valid_BN, 0.0)
    sorted_BN, order_BN = mass_BN.sort(dim=1, descending=True, stable=True)
    before_BN = sorted_BN.cumsum(dim=1) - sorted_BN
    goal_B1 = fraction * mass_BN.sum(dim=1, keepdim=True)
    # Rounding of the running sum must not add a token beyond the goal.
    chosen_BN = (before_BN < goal_B1 * (1 - 1e-12)) & (sorted_BN > 0)
    return torch.zeros_like(chosen_BN).scatter(1, order_BN, chosen_BN)


def _neighbors(position_BS: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return the two integer positions around each one, with their linear weights."""
    low_BS = position_BS.floor()
    share_BS = position_BS - low_BS
    return (low_BS.long(), 1 - share_BS), (low_BS.long() + 1, share_BS)


def _check(
    locations_BQMLP2: Tensor, weights_BQMLP: Tensor, level_shapes: Sequence[Sequence[int]]
) -> None:
    expected = (*weights_BQMLP.shape, 2)
    if weights_BQMLP.dim() != 5 or tuple(locations_BQMLP2.shape) != expected:
        raise ValueError(
            "splatting needs weights [B, Q, M, L, P] and locations [B, Q, M, L, P, 2], got "
            f"{list(weights_BQMLP.shape)} and {list(locations_BQMLP2.shape)}"
        )
    if weights_BQMLP.shape[3] != len(level_shapes):
        raise ValueError(
            f"weights of {weights_BQMLP.shape[3]} levels do not fit {len(level_shapes)} "
            "level_shapes"
        )
