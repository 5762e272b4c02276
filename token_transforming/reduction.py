"""Reduce tokens: build W from the tokens and the attention that they receive.

Shapes: B sequence (an image, or a window of one), N token, K reduced token, C channel, D head
width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from token_transforming.clustering import cluster_locally, grid_anchors
from token_transforming.merging import bipartite_clusters
from token_transforming.selection import (
    choose,
    distinct_scores,
    even_grid_scores,
    even_scores,
    pooled_queries,
)
from token_transforming.settings import Reduction
from tokendetr.tokens import ClusterAssignment, Mix, Recovery, assign_by_similarity


@dataclass(frozen=True)
class Candidates:
    """The tokens to reduce, with their statistics.

    Attributes:
        x_BNC: their features.
        received_BN: attention they receive from all tokens.
        class_BN: attention they receive from the class token; None if there is none.
        key_BND: their keys, mean over heads.
        kept: number K of reduced tokens.
        grid: height and width, if they form a grid, row by row.
        kept_grid: rows and columns of the reduced tokens; K is their product.
        size_BN: number of original tokens in each; None: 1.
        valid_BN: bool, False = padding; None if there is none.
        kept_B: long, number of tokens that each sequence keeps, at most K; None: K.
    """

    x_BNC: Tensor
    received_BN: Tensor
    class_BN: Tensor | None
    key_BND: Tensor
    kept: int
    grid: tuple[int, int] | None = None
    kept_grid: tuple[int, int] | None = None
    size_BN: Tensor | None = None
    valid_BN: Tensor | None = None
    kept_B: Tensor | None = None


@dataclass(frozen=True)
class Reduced:
    """Reduced tokens.

    Attributes:
        x_BKC: their features.
        size_BK: float32, number of original tokens in each.
        valid_BK: bool, False for padding entries; None if there are none.
        token_map: the map that made them, with its recovery if requested.
    """

    x_BKC: Tensor
    size_BK: Tensor
    valid_BK: Tensor | None
    token_map: Mix


def reduce_tokens(tokens: Candidates, reduction: Reduction, *, recover: bool) -> Reduced:
    """Reduce tokens.

    Args:
        tokens: the tokens.
        reduction: the method and its options.
        recover: the tokens will be restored later: by the method's own recovery, else from the
            nearest reduced token. Transforming with another recovery than the paper's restores a
            token from the reduced token that it is most similar to: that is known already, where
            distances are a matrix product of their own.

    Raises:
        ValueError: the method needs a class token or a grid, and there is none.
    """
    if reduction.method == "transforming":
        token_map = _transform(tokens, reduction, recover=recover)
    else:
        token_map = _BUILDERS[reduction.method](tokens, reduction)
    x_BKC, size_BK = token_map.mix(tokens.x_BNC)
    if recover and token_map.recovery is None:
        token_map = token_map.with_recovery(tokens.x_BNC, x_BKC)
    return Reduced(x_BKC, size_BK, token_map.valid_BK, token_map)


def sizes_with_padding(reduced: Reduced, size_BN: Tensor | None, valid_BN: Tensor | None) -> Tensor:
    """Return sizes [B, K] in which padding slots share the total size of the padding.

    Args:
        reduced: the reduced tokens.
        size_BN: sizes before the reduction, of padding too; None: 1.
        valid_BN: bool, False = padding; None if there was none.
    """
    if valid_BN is None or reduced.valid_BK is None:
        return reduced.size_BK
    if size_BN is None:
        size_BN = valid_BN.new_ones(valid_BN.shape, dtype=torch.float32)
    padding_B1 = size_BN.masked_fill(valid_BN, 0.0).sum(dim=1, keepdim=True)
    places_B1 = (~reduced.valid_BK).sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(reduced.valid_BK, reduced.size_BK, padding_B1 / places_B1)


def informativeness(tokens: Candidates, reduction: Reduction) -> Tensor:
    """Return the scores [B, N] by which informative tokens are chosen.

    Raises:
        ValueError: class attention without a class token.
    """
    if reduction.selection == "attention":
        return tokens.received_BN
    if reduction.selection == "class_attention":
        if tokens.class_BN is None:
            raise ValueError(
                "selection='class_attention' needs a class token, and this model has none: "
                "use 'attention' or 'uniform'"
            )
        return tokens.class_BN
    if reduction.selection == "distinct":
        return distinct_scores(tokens.x_BNC, tokens.valid_BN)
    batch, number = tokens.received_BN.shape
    device = tokens.received_BN.device
    if tokens.grid is not None and tokens.kept_grid is not None:
        score_N = even_grid_scores(tokens.grid, tokens.kept_grid, device)
    else:
        score_N = even_scores(number, tokens.kept, device)
    return score_N.expand(batch, -1)


def _transform(tokens: Candidates, reduction: Reduction, *, recover: bool) -> Mix:
    """Build the many-to-many map of the paper (equations 3 to 8)."""
    query_BKC = None
    with_closest = recover and reduction.recovery != "paper"
    if reduction.selection == "pooled":
        query_BKC, index_BK, valid_BK = pooled_queries(
            tokens.x_BNC, tokens.grid, tokens.kept_grid, tokens.kept, tokens.valid_BN
        )
    else:
        index_BK, valid_BK = _informative(tokens, reduction)
    assignment = assign_by_similarity(
        tokens.x_BNC,
        index_BK,
        threshold=reduction.threshold,
        temperature=reduction.temperature,
        valid_BN=tokens.valid_BN,
        valid_BK=valid_BK,
        query_BKC=query_BKC,
        similarity=reduction.similarity,
        normalize=reduction.normalize,
        with_closest=with_closest,
    )
    return Mix(
        assignment=assignment,
        index_BK=index_BK,
        valid_BK=valid_BK,
        size_BN=tokens.size_BN if reduction.sizes == "carried" else None,
        recovery=Recovery(assignment.closest_BN()[..., None]) if with_closest else None,
    )


def _prune(tokens: Candidates, reduction: Reduction) -> Mix:
    """Build a map with one-hot rows: keep the informative tokens."""
    index_BK, valid_BK = _informative(tokens, reduction)
    return Mix(
        assignment=ClusterAssignment(_kept_slots(tokens, index_BK, valid_BK), tokens.kept),
        index_BK=index_BK,
        valid_BK=valid_BK,
        size_BN=tokens.size_BN,
    )


def _merge(tokens: Candidates, reduction: Reduction) -> Mix:
    """Build a map in which every token belongs to one cluster."""
    cluster_BN, index_BK, valid_BK = bipartite_clusters(
        tokens.key_BND, tokens.kept, tokens.size_BN, tokens.valid_BN, tokens.kept_B
    )
    return Mix(
        assignment=ClusterAssignment(cluster_BN, tokens.kept),
        index_BK=index_BK,
        valid_BK=valid_BK,
        size_BN=tokens.size_BN,
    )


def _fuse(tokens: Candidates, reduction: Reduction) -> Mix:
    """Build a map that keeps informative tokens and fuses the others into one (EViT).

    The fused tokens are weighted by their scores.

    Source: EViT, arXiv 2202.07800, section 3.2; without a class token by the attention of all.
    """
    score_BN = informativeness(tokens, reduction).float()
    index_BK, valid_BK = choose(score_BN, tokens.kept, tokens.valid_BN, tokens.kept_B)
    cluster_BN = _kept_slots(tokens, index_BK, valid_BK)
    chosen_BK = score_BN.gather(1, index_BK)
    if valid_BK is not None:
        chosen_BK = chosen_BK.masked_fill(~valid_BK, float("inf"))
    fused_B1 = chosen_BK.argmin(dim=1, keepdim=True)
    left_out_BN = cluster_BN < 0
    cluster_BN = torch.where(left_out_BN, fused_B1, cluster_BN)
    is_fused_BN = cluster_BN == fused_B1
    weight_BN = torch.where(is_fused_BN, score_BN.clamp_min(1e-12), 1.0)
    if tokens.valid_BN is not None:
        cluster_BN = cluster_BN.masked_fill(~tokens.valid_BN, -1)
    return Mix(
        assignment=ClusterAssignment(cluster_BN, tokens.kept),
        index_BK=index_BK,
        valid_BK=valid_BK,
        size_BN=tokens.size_BN,
        weight_BN=weight_BN,
    )


def _cluster(tokens: Candidates, reduction: Reduction) -> Mix:
    """Build a map of local soft clusters of a grid."""
    if tokens.grid is None or tokens.kept_grid is None:
        raise ValueError("method='clustering' needs tokens that form a grid")
    assignment, valid_BK, recovery = cluster_locally(
        tokens.x_BNC, tokens.grid, tokens.kept_grid, tokens.valid_BN
    )
    index_K = grid_anchors(tokens.grid, tokens.kept_grid, tokens.x_BNC.device)
    return Mix(
        assignment=assignment,
        index_BK=index_K.expand(tokens.x_BNC.shape[0], -1),
        valid_BK=valid_BK,
        size_BN=tokens.size_BN,
        recovery=recovery,
    )


def _informative(tokens: Candidates, reduction: Reduction) -> tuple[Tensor, Tensor | None]:
    return choose(informativeness(tokens, reduction), tokens.kept, tokens.valid_BN, tokens.kept_B)


def _kept_slots(tokens: Candidates, index_BK: Tensor, valid_BK: Tensor | None) -> Tensor:
    """Return the slot of each chosen token, long [B, N], -1 for the others."""
    batch, number = tokens.received_BN.shape
    slot_BK = torch.arange(tokens.kept, device=index_BK.device).expand(batch, -1)
    if valid_BK is not None:
        slot_BK = slot_BK.masked_fill(~valid_BK, -1)
    return slot_BK.new_full((batch, number), -1).scatter(1, index_BK, slot_BK)


_BUILDERS = {
    "pruning": _prune,
    "merging": _merge,
    "fusing": _fuse,
    "clustering": _cluster,
}
