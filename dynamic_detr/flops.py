"""Operations of Dynamic DETR's encoder, computed from shapes.

A multiply-add counts 1, as in fvcore.
"""

from collections.abc import Sequence

from dynamic_detr.budget import TokenBudget

_NORM_MACS = 5
"""fvcore's count per channel of a LayerNorm with scale and shift."""


def query_token_macs(
    *,
    embed_dim: int = 256,
    feedforward_dim: int = 2048,
    num_heads: int = 8,
    num_levels: int = 4,
    num_points: int = 4,
) -> int:
    """Return the cost of updating one token in one encoder layer, without its value projection."""
    samples = num_heads * num_levels * num_points
    projections = embed_dim * (3 * samples + embed_dim)
    sampling = 4 * samples * (embed_dim // num_heads)
    return projections + sampling + 2 * embed_dim * feedforward_dim + 2 * _NORM_MACS * embed_dim


def encoder_macs(
    level_shapes: Sequence[Sequence[int]],
    budget: TokenBudget | None = None,
    *,
    num_layers: int = 6,
    embed_dim: int = 256,
    feedforward_dim: int = 2048,
    num_heads: int = 8,
    num_points: int = 4,
) -> int:
    """Return the cost of the whole encoder for one image.

    Args:
        level_shapes: (height, width) of each level, finest first.
        budget: token counts; None updates all tokens in all ``num_layers`` layers.
        num_layers: layers of the dense encoder; with a budget they follow from it.
        embed_dim: channels.
        feedforward_dim: hidden channels of the feed-forward networks.
        num_heads: attention heads.
        num_points: sampled points per head and level.
    """
    tokens = sum(height * width for height, width in level_shapes)
    per_token = query_token_macs(
        embed_dim=embed_dim,
        feedforward_dim=feedforward_dim,
        num_heads=num_heads,
        num_levels=len(level_shapes),
        num_points=num_points,
    )
    if budget is None:
        return num_layers * tokens * (embed_dim**2 + per_token)
    values = budget.num_layers * tokens * embed_dim**2
    updates = sum(
        length * budget.kept_tokens(stage, level_shapes) * per_token
        for stage, length in enumerate(budget.stage_lengths)
    )
    return values + updates + _matching_macs(level_shapes, budget, embed_dim)


def saved_macs(level_shapes: Sequence[Sequence[int]], budget: TokenBudget) -> int:
    """Return the cost saved over the dense encoder, to be subtracted from a dense detector's.

    Args:
        level_shapes: (height, width) in tokens of each level, finest first.
        budget: of an encoder with the dimensions that :func:`encoder_macs` has by default.
    """
    dense, dynamic = (
        encoder_macs(level_shapes, choice, num_layers=budget.num_layers)
        for choice in (None, budget)
    )
    return dense - dynamic


def _matching_macs(
    level_shapes: Sequence[Sequence[int]], budget: TokenBudget, embed_dim: int
) -> int:
    """Return the cost of the coarsest level's cosine matrix and merging matrix in each stage."""
    height, width = level_shapes[-1]
    stages = sum(budget.level_ratios(stage)[-1] < 1 for stage in range(len(budget.stage_lengths)))
    return 2 * stages * (height * width) ** 2 * embed_dim
