"""Which tokens belong together: coherent windows, rare tokens, and the tokens that are most alike.

Shapes: B image, H and W a level's height and width, S full windows of a level, P tokens of a
window, N tokens of a level, T neighbours. Nothing here carries a gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.tokens.layout import LevelLayout
from tokendetr.tokens.select import topk_valid

_ZERO_NORM = 1e-12


def window_members(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Return the tokens of each full window of a level, long [S, P], the bottom-right one last.

    Windows start at the upper left, in rows; tokens count from the level's first one. Cells that
    fill no window at the right and the bottom are in none.
    """
    rows, columns = height // window, width // window
    first_S = (
        torch.arange(rows, device=device)[:, None] * (window * width)
        + torch.arange(columns, device=device) * window
    ).flatten()
    cell = torch.arange(window, device=device)
    return first_S[:, None] + (cell[:, None] * width + cell).flatten()


def window_validity(
    layout: LevelLayout, level: int, window: int
) -> tuple[Tensor | None, list[int]]:
    """Return which full windows of a level hold no padding.

    Returns:
        Bool [B, S], or None where all do; and how many there are in each image.
    """
    height, width = layout.level_shapes[level]
    rows, columns = height // window, width // window
    if not layout.may_have_padding:
        return None, [rows * columns] * layout.batch_size
    grid_BHW = layout.grid(layout.valid_BN, level)[:, : rows * window, : columns * window]
    cells = grid_BHW.unflatten(2, (columns, window)).unflatten(1, (rows, window))
    valid_BS = cells.all(dim=4).all(dim=2).flatten(1)
    if layout.known_sizes is None:
        return valid_BS, valid_BS.sum(dim=1).tolist()
    sizes = [image[level] for image in layout.known_sizes]
    return valid_BS, [(height // window) * (width // window) for height, width in sizes]


@torch.no_grad()
def window_coherence(x_BNC: Tensor, *, height: int, width: int, window: int) -> Tensor:
    """Return how alike the tokens of each full window are: their mean pairwise cosine similarity.

    It is the squared length of the mean of the window's unit vectors, so no pairwise matrix is
    made. A zero vector has similarity 0 with everything.

    Args:
        x_BNC: one level's tokens, row by row.
        height: the level's rows.
        width: the level's columns.
        window: cells per side, n; pairs include a token with itself.

    Returns:
        Float32 (float64 for float64 tokens) [B, S] in [-1e-6, 1 + 1e-6].

    Source: Dynamic DETR (ICML 2025), section 3.3, equations 5 and 6.
    """
    x_BNC = x_BNC if x_BNC.dtype == torch.float64 else x_BNC.float()
    batch, tokens, _ = x_BNC.shape
    members_SP = window_members(height, width, window, x_BNC.device)
    if members_SP.numel() == 0:
        return x_BNC.new_zeros(batch, members_SP.shape[0])
    norm_BN = torch.linalg.vector_norm(x_BNC, dim=-1).clamp_min(_ZERO_NORM)
    offset_B11 = torch.arange(batch, device=x_BNC.device)[:, None, None] * tokens
    index_AP = (members_SP + offset_B11).flatten(0, 1)
    # One fused gather and weighted sum: the unit vectors are never stored.
    sum_AC = F.embedding_bag(
        index_AP,
        x_BNC.flatten(0, 1),
        mode="sum",
        per_sample_weights=norm_BN.reciprocal().flatten()[index_AP],
    )
    return (sum_AC / window**2).square().sum(dim=-1).view(batch, -1)


@dataclass(frozen=True)
class AffinityMatch:
    """How a level's unimportant tokens are matched to important ones.

    Attributes:
        score_BN: rarity, higher = more important; -inf for padding.
        important_BN: bool, True for the important tokens.
        index_BK: long, the important tokens, most important first; an image's own count comes
            first.
        match_BNT: long, the tokens that are most alike, best first.
        hit_BNT: bool, True where an unimportant token is to be merged into ``match_BNT``.
    """

    score_BN: Tensor
    important_BN: Tensor
    index_BK: Tensor
    match_BNT: Tensor
    hit_BNT: Tensor


@torch.no_grad()
def match_by_affinity(
    x_BNC: Tensor,
    *,
    important_counts: Sequence[int],
    valid_BN: Tensor | None,
    valid_counts: Sequence[int],
    num_neighbors: int,
    min_cosine: float,
    score_BN: Tensor | None = None,
) -> AffinityMatch:
    """Rank a level's tokens by rarity, and find for every unimportant one the important ones among
    its neighbours.

    Rarity is the mean of 1 / cosine over an image's other tokens. An unimportant token's
    neighbours are the ``num_neighbors`` tokens (of any kind, itself left out) of the highest
    cosine; those that are important take it in.

    Args:
        x_BNC: one level's tokens.
        important_counts: how many tokens of each image are important.
        valid_BN: bool, True where a token is real; None where all are.
        valid_counts: real tokens of each image.
        num_neighbors: neighbours T; fewer where an image has no more other tokens.
        min_cosine: lower bound of cosines before they are inverted, above 0: keeps "less alike =
            more important".
        score_BN: ranks the tokens instead of rarity where given.

    Source: Dynamic DETR (ICML 2025), section 3.3, equation 10 and algorithm 1. Differs: cosines
    are clamped; all merges use the tokens as they were before (the paper's loop depends on the
    order).
    """
    x_BNC = x_BNC if x_BNC.dtype == torch.float64 else x_BNC.float()
    batch, tokens, _ = x_BNC.shape
    norm_BN1 = torch.linalg.vector_norm(x_BNC, dim=-1, keepdim=True).clamp_min(_ZERO_NORM)
    unit_BNC = x_BNC / norm_BN1
    cosine_BNN = unit_BNC @ unit_BNC.transpose(1, 2)
    cosine_BNN = (cosine_BNN + cosine_BNN.transpose(1, 2)) / 2  # exact ties of two tokens stay ties
    itself_NN = torch.eye(tokens, dtype=torch.bool, device=x_BNC.device)
    other_BNN = ~itself_NN.expand(batch, -1, -1)
    if valid_BN is not None:
        other_BNN = other_BNN & valid_BN[:, None, :]
    if score_BN is None:
        others_B1 = torch.tensor(valid_counts, device=x_BNC.device)[:, None].sub(1).clamp_min(1)
        inverse_BNN = cosine_BNN.clamp_min(min_cosine).reciprocal()
        # Exact in double precision: tokens that tie do so in whatever order they are added up.
        sum_BN = inverse_BNN.masked_fill(~other_BNN, 0.0).sum(dim=2, dtype=torch.float64)
        score_BN = (sum_BN / others_B1).to(x_BNC.dtype)
    if valid_BN is not None:
        score_BN = score_BN.masked_fill(~valid_BN, float("-inf"))
    index_BK, chosen_BK = topk_valid(
        score_BN, important_counts, valid_BN=valid_BN, valid_counts=valid_counts
    )
    important_BN = torch.zeros(batch, tokens, dtype=torch.bool, device=x_BNC.device)
    chosen_BK = torch.ones_like(index_BK, dtype=torch.bool) if chosen_BK is None else chosen_BK
    important_BN = important_BN.scatter(1, index_BK, chosen_BK)
    match_BNT, found_BNT = _nearest(
        cosine_BNN.masked_fill(~other_BNN, float("-inf")), num_neighbors
    )
    source_BN = ~important_BN if valid_BN is None else ~important_BN & valid_BN
    flat_BM = match_BNT.flatten(1)
    hit_BNT = important_BN.gather(1, flat_BM).view_as(match_BNT) & found_BNT & source_BN[..., None]
    return AffinityMatch(score_BN, important_BN, index_BK, match_BNT, hit_BNT)


def _nearest(similarity_BNN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return each row's ``count`` highest columns (the first of equals), and whether they are
    above -inf."""
    similarity_BNN = similarity_BNN.clone()
    columns, found = [], []
    for _ in range(min(count, similarity_BNN.shape[2])):
        best_BN1 = similarity_BNN.argmax(dim=2, keepdim=True)
        found.append(similarity_BNN.gather(2, best_BN1) > float("-inf"))
        columns.append(best_BN1)
        similarity_BNN.scatter_(2, best_BN1, float("-inf"))
    if not columns:
        empty = similarity_BNN.new_zeros(*similarity_BNN.shape[:2], 0)
        return empty.long(), empty.bool()
    return torch.cat(columns, dim=2), torch.cat(found, dim=2)
