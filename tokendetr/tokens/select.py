"""Select tokens: stable top-k and stable partition, with per-image counts, never padding.

Shapes: B image, N candidates (of tokens: all of the pyramid), K the largest count of the batch.

Index lists are prefixes of a permutation of the candidates: all of an image's entries are distinct,
including the padding entries after its own count.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from tokendetr.tokens.counts import Counts, TracedCounts, longest_count
from tokendetr.tokens.layout import LevelLayout


def valid_from_counts(counts: Counts, length: int, device: torch.device) -> Tensor | None:
    """Return bool [B, length], True for the first ``counts[b]`` entries; None if all are."""
    if isinstance(counts, TracedCounts):
        return torch.arange(length, device=device) < counts.count_B[:, None]
    if all(count == length for count in counts):
        return None
    counts_B1 = torch.tensor(counts, device=device)[:, None]
    return torch.arange(length, device=device) < counts_B1


def ragged_index(counts: Sequence[int], stride: int, device: torch.device) -> Tensor:
    """Return the flat positions of the first ``counts[b]`` entries of each row of [B, stride]."""
    pieces = [torch.arange(count) + row * stride for row, count in enumerate(counts)]
    return torch.cat(pieces).to(device)


def topk_valid(
    score_BN: Tensor,
    counts: Counts,
    *,
    valid_BN: Tensor | None = None,
    valid_counts: Counts | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return each image's best candidates, best first; equal scores keep their order of position.

    Args:
        score_BN: float; NaN counts as the lowest score.
        counts: wanted candidates of each image, at least 0; an image with fewer real ones gets all
            of them.
        valid_BN: bool, True for real candidates, the only ones that are chosen; None if all are.
        valid_counts: real candidates of each image, if known; saves a synchronization with the
            device.

    Returns:
        Long [B, K], and bool [B, K], True for an image's own choices, or None if all entries are.

    Raises:
        ValueError: a count below 0, or a wrong number of counts.
    """
    score_BN = score_BN.detach()
    lowest = torch.finfo(score_BN.dtype).min
    score_BN = score_BN.nan_to_num(nan=lowest, neginf=lowest)
    if valid_BN is not None:
        score_BN = score_BN.masked_fill(~valid_BN, float("-inf"))
    counts = _existing(counts, score_BN, valid_BN, valid_counts)
    length = longest_count(counts)
    order_BN = score_BN.sort(dim=1, descending=True, stable=True).indices
    return order_BN[:, :length], valid_from_counts(counts, length, score_BN.device)


def _existing(
    counts: Counts, score_BN: Tensor, valid_BN: Tensor | None, valid_counts: Counts | None
) -> Counts:
    """Return the counts, clamped to the candidates that each image has."""
    batch, candidates = score_BN.shape
    if isinstance(counts, TracedCounts):
        count_B = counts.count_B.clamp_max(candidates)
        if valid_BN is not None:
            count_B = count_B.minimum(valid_BN.sum(dim=1))
        return TracedCounts(count_B, min(counts.longest, candidates))
    if len(counts) != batch or any(count < 0 for count in counts):
        raise ValueError(f"need {batch} counts of at least 0, got {list(counts)}")
    existing: Sequence[int] = [candidates] * batch
    if valid_BN is not None:
        unknown = valid_counts is None or isinstance(valid_counts, TracedCounts)
        existing = valid_BN.sum(dim=1).tolist() if unknown else cast(Sequence[int], valid_counts)
    return [min(count, exists) for count, exists in zip(counts, existing, strict=True)]


def select_tokens(
    score_BN: Tensor, counts: Counts, layout: LevelLayout
) -> tuple[Tensor, Tensor | None]:
    """Return each image's best real tokens as :func:`topk_valid` does.

    Args:
        score_BN: float scores of all tokens.
        counts: wanted tokens of each image.
        layout: the batch.
    """
    return topk_valid(
        score_BN,
        counts,
        valid_BN=layout.valid_if_padded_BN,
        valid_counts=layout.token_counts,
    )


def chosen_tokens(index_BK: Tensor, valid_BK: Tensor | None, num_tokens: int) -> Tensor:
    """Return bool [B, N], True for the tokens of an index list; padding entries do not count."""
    if valid_BK is None:
        valid_BK = torch.ones_like(index_BK, dtype=torch.bool)
    return valid_BK.new_zeros(index_BK.shape[0], num_tokens).scatter(1, index_BK, valid_BK)


def partition(keep_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Order candidates so that the kept ones come first, both parts in order of position.

    Args:
        keep_BN: bool.

    Returns:
        The order, long [B, N] (``order[b, s]`` is the candidate at place s), and its inverse, long
        [B, N] (``slot[b, n]`` is the place of candidate n).
    """
    kept_up_to_BN = keep_BN.cumsum(dim=1)
    position_N = torch.arange(keep_BN.shape[1], device=keep_BN.device)
    behind_kept_BN = kept_up_to_BN[:, -1:] + (position_N - kept_up_to_BN)
    slot_BN = torch.where(keep_BN, kept_up_to_BN - 1, behind_kept_BN)
    position_BN = position_N.expand_as(slot_BN)
    return torch.empty_like(slot_BN).scatter_(1, slot_BN, position_BN), slot_BN
