"""Bipartite merging of tokens with similar keys.

Tokens alternate between two sets; each token of the first is paired with the most similar one of
the second, and the closest pairs merge. One round can remove at most half of the tokens, so several
may be needed.

Source: Token Merging, arXiv 2210.09461, section 3.

Shapes: B sequence, N token, n tokens left, A and E tokens of the two sets, C channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from token_transforming.selection import fill_places
from tokendetr.tokens import ClusterAssignment, partition, take_rows
from tokendetr.tokens.assignment import without_autocast


def kept_tokens(real: Sequence[int], tokens: int, kept: int, method: str) -> tuple[int, ...]:
    """Return the number of real tokens that each window keeps, if some extend beyond the map.

    Each keeps its share, and leaves at least one slot to its padding. In merging, all windows have
    as many rounds as a full window needs.

    Args:
        real: real tokens of each window.
        tokens: slots N of a window.
        kept: slots K of a reduced window.
        method: of the reduction.
    """
    counts = []
    for number in real:
        share = min(-(-number * kept // tokens), kept - (number < tokens))
        goal, left = max(share, 1), tokens
        while method == "merging" and left > kept:
            left = max(kept, (left + 1) // 2)
            number = min(number, max(goal, (number + 1) // 2))
        counts.append(number if method == "merging" else goal)
    return tuple(counts)


def bipartite_clusters(
    metric_BNC: Tensor,
    kept: int,
    size_BN: Tensor | None = None,
    valid_BN: Tensor | None = None,
    kept_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Merge tokens until K are left.

    Args:
        metric_BNC: vectors to compare (in the paper the keys, mean over heads).
        kept: number K of tokens left.
        size_BN: number of original tokens in each.
        valid_BN: bool, False = padding, which merges with nothing; None if there is none.
        kept_B: long, number of tokens left of each sequence, at most K; None: K.

    Returns:
        The cluster of each token, long [B, N], -1 for padding; the token whose position each
        cluster has, long [B, K]; and bool [B, K], False for padding slots (None if there are none).
        Clusters are in order of position.
    """
    batch, tokens = metric_BNC.shape[:2]
    metric_BNC = metric_BNC.detach().float()
    place_BN = torch.arange(tokens, device=metric_BNC.device).expand(batch, -1)
    cluster_BN, anchor_Bn, count_B = place_BN, place_BN, None
    weight_Bn = metric_BNC.new_ones(batch, tokens) if size_BN is None else size_BN.detach().float()
    if valid_BN is not None:
        anchor_Bn, slot_BN = partition(valid_BN)
        cluster_BN = slot_BN.masked_fill(~valid_BN, -1)
        metric_BNC = take_rows(metric_BNC, anchor_Bn)
        weight_Bn = weight_Bn.gather(1, anchor_Bn)
        count_B = valid_BN.sum(dim=1)
    while metric_BNC.shape[1] > kept:
        left = max(kept, (metric_BNC.shape[1] + 1) // 2)
        target_B = count_B
        if count_B is not None:
            goal_B = torch.full_like(count_B, kept) if kept_B is None else kept_B
            target_B = torch.minimum(count_B, torch.maximum(goal_B, (count_B + 1) // 2))
        goes_Bn, survivor_Bn = _merge_round(metric_BNC, left, count_B, target_B)
        gone_BN = cluster_BN < 0
        cluster_BN = goes_Bn.gather(1, cluster_BN.clamp_min(0)).masked_fill(gone_BN, -1)
        total_BnC, mass_Bn = ClusterAssignment(goes_Bn, left).gather(metric_BNC, weight_Bn)
        metric_BNC = total_BnC / mass_Bn.clamp_min(1e-12)[..., None]
        weight_Bn = mass_Bn
        anchor_Bn = anchor_Bn.gather(1, survivor_Bn)
        count_B = target_B
    if count_B is None or valid_BN is None:
        return cluster_BN, anchor_Bn, None
    is_cluster_BK = torch.arange(kept, device=anchor_Bn.device) < count_B[:, None]
    taken_BN = torch.zeros_like(valid_BN).scatter(1, anchor_Bn, is_cluster_BK)
    index_BK, valid_BK = fill_places(taken_BN, valid_BN, kept)
    # So far clusters are numbered without the padding slots between them.
    place_BK = torch.arange(kept, device=anchor_Bn.device).expand(batch, -1)
    place_BN = torch.zeros_like(cluster_BN).scatter(1, index_BK, place_BK)
    owner_BN = anchor_Bn.gather(1, cluster_BN.clamp_min(0))
    return place_BN.gather(1, owner_BN).masked_fill(~valid_BN, -1), index_BK, valid_BK


def _merge_round(
    metric_BnC: Tensor, left: int, count_B: Tensor | None, target_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run one round of merging.

    Args:
        metric_BnC: vectors to compare; a sequence's real tokens come first.
        left: number of tokens left in the longest sequence.
        count_B: real tokens of each sequence; None: all.
        target_B: real tokens of each sequence afterwards.

    Returns:
        The new index of each token, long [B, n], -1 for padding, and the tokens that are left,
        long [B, left].
    """
    batch, tokens, _ = metric_BnC.shape
    direction_BnC = F.normalize(metric_BnC, dim=-1)
    with without_autocast(metric_BnC.device):
        alike_BAE = direction_BnC[:, ::2] @ direction_BnC[:, 1::2].transpose(1, 2)
    place_n = torch.arange(tokens, device=metric_BnC.device)
    if count_B is None or target_B is None:
        removed_B1 = place_n.new_full((batch, 1), tokens - left)
    else:
        removed_B1 = (count_B - target_B)[:, None]
        real_Bn = place_n < count_B[:, None]
        real_BAE = real_Bn[:, ::2, None] & real_Bn[:, None, 1::2]
        alike_BAE = alike_BAE.masked_fill(~real_BAE, float("-inf"))
    best_BA, partner_BA = alike_BAE.max(dim=2)
    order_BA = best_BA.sort(dim=1, descending=True, stable=True).indices
    rank_BA = order_BA.argsort(dim=1)
    merges_Bn = torch.zeros(batch, tokens, dtype=torch.bool, device=metric_BnC.device)
    merges_Bn[:, ::2] = rank_BA < removed_B1
    stays_Bn = ~merges_Bn if count_B is None else ~merges_Bn & (place_n < count_B[:, None])
    survivor_Bn, slot_Bn = partition(stays_Bn)
    partner_Bn = place_n.expand(batch, -1).clone()
    partner_Bn[:, ::2] = torch.where(merges_Bn[:, ::2], 2 * partner_BA + 1, partner_Bn[:, ::2])
    goes_Bn = slot_Bn.gather(1, partner_Bn)
    if count_B is not None:
        goes_Bn = goes_Bn.masked_fill(place_n >= count_B[:, None], -1)
    return goes_Bn, survivor_Bn[:, :left]
