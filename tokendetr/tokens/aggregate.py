"""Rank the tokens of a level by rarity, and match the common ones to the rare.

Shapes: B image, N tokens of a level, T neighbors. Nothing here carries a gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokendetr.tokens.constants import kept_tensors
from tokendetr.tokens.counts import Counts, TracedCounts
from tokendetr.tokens.norms import token_norms
from tokendetr.tokens.select import chosen_tokens, topk_valid


@dataclass(frozen=True)
class AffinityMatch:
    """Match of a level's unimportant tokens to important ones.

    Attributes:
        score_BN: rarity, higher = more important; -inf for padding.
        important_BN: bool, True for the important tokens.
        index_BK: long, the important tokens, most important first; entries beyond an image's own
            count are padding.
        neighbor_index_BNT: long, the most similar tokens, best first.
        absorbs_BNT: bool, True if that neighbor absorbs the token: the neighbor is important, the
            token is not.
        absorbed_BNN: float32, 1 where the column's token absorbs the row's.
    """

    score_BN: Tensor
    important_BN: Tensor
    index_BK: Tensor
    neighbor_index_BNT: Tensor
    absorbs_BNT: Tensor
    absorbed_BNN: Tensor


@torch.no_grad()
def match_by_affinity(
    x_BNC: Tensor,
    *,
    important_counts: Counts,
    valid_BN: Tensor | None,
    valid_counts: Counts,
    num_neighbors: int,
    min_cosine: float,
    norm_BN: Tensor | None = None,
    score_BN: Tensor | None = None,
    order_BN: Tensor | None = None,
) -> AffinityMatch:
    """Rank a level's tokens by rarity, and match each unimportant one to its important neighbors.

    Rarity is the mean of 1 / cosine over an image's other tokens. The neighbors of an unimportant
    token are the ``num_neighbors`` tokens of the highest cosine, important or not, itself excluded;
    the important ones among them absorb it.

    Args:
        x_BNC: one level's tokens.
        important_counts: number of important tokens of each image.
        valid_BN: bool, True for real tokens; None if all are.
        valid_counts: real tokens of each image.
        num_neighbors: neighbors T; fewer if an image has fewer other tokens.
        min_cosine: lower bound of cosines before they are inverted, above 0. A negative cosine
            would otherwise make the least similar tokens the least rare.
        norm_BN: the tokens' :func:`tokendetr.tokens.token_norms`, if they are known.
        score_BN: scores that replace rarity; None computes rarity.
        order_BN: long, the order in which equally rare tokens are chosen; None: by position.

    Source: Dynamic DETR (ICML 2025), section 3.3, equation 10 and algorithm 1. Differs: cosines
    are clamped; all merges use the tokens as they were before (the paper's loop depends on the
    order).
    """
    x_BNC = x_BNC if x_BNC.dtype == torch.float64 else x_BNC.float()
    norm_BN = token_norms(x_BNC) if norm_BN is None else norm_BN
    return match_cosines(
        token_cosines(x_BNC / norm_BN[..., None]),
        important_counts=important_counts,
        valid_BN=valid_BN,
        valid_counts=valid_counts,
        num_neighbors=num_neighbors,
        min_cosine=min_cosine,
        score_BN=score_BN,
        order_BN=order_BN,
    )


@torch.no_grad()
def token_cosines(unit_BNC: Tensor) -> Tensor:
    """Return the products [B, N, N] of a level's unit vectors."""
    return torch.bmm(unit_BNC, unit_BNC.transpose(1, 2))


@torch.no_grad()
def match_cosines(
    cosine_BNN: Tensor,
    *,
    important_counts: Counts,
    valid_BN: Tensor | None,
    valid_counts: Counts,
    num_neighbors: int,
    min_cosine: float,
    score_BN: Tensor | None = None,
    order_BN: Tensor | None = None,
) -> AffinityMatch:
    """Return :func:`match_by_affinity` of tokens with these :func:`token_cosines`."""
    batch, tokens = cosine_BNN.shape[:2]
    device, dtype = cosine_BNN.device, cosine_BNN.dtype
    if order_BN is None:
        order_BN = torch.arange(tokens, device=device).expand(batch, -1)
    # A matrix product rounds (i, j) and (j, i) differently: equally rare tokens must tie exactly.
    cosine_BNN = (cosine_BNN + cosine_BNN.transpose(1, 2)) / 2
    hidden_BNN = _diagonal(tokens, device)  # pairs that do not count
    if valid_BN is not None:
        hidden_BNN = hidden_BNN | ~valid_BN[:, None, :]
    if score_BN is None:
        inverse_BNN = cosine_BNN.clamp_min(min_cosine).reciprocal()
        # In float64 the order of the sum hardly matters, so equally rare tokens tie in any batch.
        sum_BN = inverse_BNN.masked_fill(hidden_BNN, 0.0).sum(dim=2, dtype=torch.float64)
        score_BN = (sum_BN / _others(valid_counts, device)).to(dtype)
    if valid_BN is not None:
        score_BN = score_BN.masked_fill(~valid_BN, float("-inf"))
    neighbors = _nearest(
        cosine_BNN.masked_fill(hidden_BNN, float("-inf")),
        num_neighbors,
        all_exist=valid_BN is None and num_neighbors < tokens,
    )
    return _match(score_BN, neighbors, order_BN, important_counts, valid_BN, valid_counts)


def _match(
    score_BN: Tensor,
    neighbors: tuple[Tensor, Tensor | None],
    order_BN: Tensor,
    important_counts: Counts,
    valid_BN: Tensor | None,
    valid_counts: Counts,
) -> AffinityMatch:
    """Choose the important tokens by their scores, and those that they absorb.

    Args: those of :func:`match_by_affinity`, and the results of :func:`_nearest`.
    """
    place_BK, chosen_BK = topk_valid(
        score_BN.gather(1, order_BN),
        important_counts,
        valid_BN=None if valid_BN is None else valid_BN.gather(1, order_BN),
        valid_counts=valid_counts,
    )
    index_BK = order_BN.gather(1, place_BK)
    important_BN = chosen_tokens(index_BK, chosen_BK, score_BN.shape[1])
    neighbor_index_BNT, found_BNT = neighbors
    source_BN = ~important_BN if valid_BN is None else ~important_BN & valid_BN
    absorbs_BNT = important_BN.gather(1, neighbor_index_BNT.flatten(1)).view_as(neighbor_index_BNT)
    absorbs_BNT = absorbs_BNT & source_BN[..., None]
    if found_BNT is not None:
        absorbs_BNT = absorbs_BNT & found_BNT
    return AffinityMatch(
        score_BN,
        important_BN,
        index_BK,
        neighbor_index_BNT,
        absorbs_BNT,
        absorbed_matrix(neighbor_index_BNT, absorbs_BNT),
    )


def absorbed_matrix(neighbor_index_BNT: Tensor, absorbs_BNT: Tensor) -> Tensor:
    """Return which token absorbs which, float32 [B, N, N]; see :class:`AffinityMatch`."""
    batch, tokens, _ = neighbor_index_BNT.shape
    absorbed_BNN = torch.zeros(batch, tokens, tokens, device=neighbor_index_BNT.device)
    # amax: if an image has fewer than T other tokens, an entry that does not absorb may repeat the
    # index of one that does, and must not overwrite it.
    return absorbed_BNN.scatter_reduce_(2, neighbor_index_BNT, absorbs_BNT.float(), "amax")


@kept_tensors
def _diagonal(tokens: int, device: torch.device) -> Tensor:
    """Return bool [1, N, N], True for pairs of a token with itself."""
    return torch.eye(tokens, dtype=torch.bool, device=device)[None]


def _others(valid_counts: Counts, device: torch.device) -> Tensor | int:
    """Return the number of other tokens of each image, at least 1; one number if all are equal."""
    if isinstance(valid_counts, TracedCounts):
        return valid_counts.count_B.sub(1).clamp_min(1)[:, None]
    others = [max(count - 1, 1) for count in valid_counts]
    return others[0] if len(set(others)) == 1 else torch.tensor(others, device=device)[:, None]


def _nearest(
    similarity_BNN: Tensor, count: int, *, all_exist: bool
) -> tuple[Tensor, Tensor | None]:
    """Return each row's ``count`` highest columns, the first of equals, overwriting the argument.

    The second result is a mask of those above -inf; None if ``all_exist``, so that all are.
    """
    similarities: list[Tensor] = []
    columns: list[Tensor] = []
    for _ in range(min(count, similarity_BNN.shape[2])):
        if columns:
            similarity_BNN.scatter_(2, columns[-1], float("-inf"))
        best_BN1, column_BN1 = similarity_BNN.max(dim=2, keepdim=True)
        similarities.append(best_BN1)
        columns.append(column_BN1)
    if not columns:
        empty = similarity_BNN.new_zeros(*similarity_BNN.shape[:2], 0)
        return empty.long(), empty.bool()
    column_BNT = torch.cat(columns, dim=2)
    return column_BNT, None if all_exist else torch.cat(similarities, dim=2) > float("-inf")
