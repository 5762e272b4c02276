"""Select the tokens around which reduced tokens are built.

Shapes: B sequence, N token, n block of tokens, K chosen token, C channel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.tokens.assignment import without_autocast

SIMILARITIES_AT_ONCE = 1 << 20
"""Similarities between tokens that are computed per block."""


def choose(
    score_BN: Tensor, kept: int, valid_BN: Tensor | None = None, kept_B: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the tokens with the highest scores, in order of position.

    Args:
        score_BN: float; among equal scores the first tokens are chosen.
        kept: number K of tokens.
        valid_BN: bool, False = padding, which is never chosen; None if there is none.
        kept_B: long, number of tokens chosen from each sequence, at most K; None: K.

    Returns:
        Long [B, K], distinct in a sequence, and bool [B, K], False for slots filled with padding,
        which are in order of position like the others. None if there is no padding.
    """
    score_BN = score_BN.detach().float().nan_to_num()
    if valid_BN is None:
        index_BK = score_BN.sort(dim=1, descending=True, stable=True).indices[:, :kept]
        return index_BK.sort(dim=1).values, None
    score_BN = score_BN.masked_fill(~valid_BN, float("-inf"))
    order_BN = score_BN.sort(dim=1, descending=True, stable=True).indices
    wanted_B1 = kept if kept_B is None else kept_B[:, None]
    taken_BN = (order_BN.argsort(dim=1) < wanted_B1) & valid_BN
    return fill_places(taken_BN, valid_BN, kept)


def fill_places(taken_BN: Tensor, valid_BN: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return the chosen tokens, and padding to fill K slots, in order of position.

    Args:
        taken_BN: bool, the chosen tokens, at most K of a sequence.
        valid_BN: bool, False = padding.
        kept: number K of slots.

    Returns:
        Long [B, K], and bool [B, K], True for the chosen tokens.
    """
    level_BN = 2 * taken_BN.long() + (~valid_BN).long()
    order_BN = level_BN.sort(dim=1, descending=True, stable=True).indices
    index_BK = order_BN[:, :kept].sort(dim=1).values
    return index_BK, taken_BN.gather(1, index_BK)


def even_scores(tokens: int, kept: int, device: torch.device) -> Tensor:
    """Return scores [N] whose K highest are spread evenly over the positions."""
    chosen_K = ((torch.arange(kept, device=device) + 0.5) * tokens / kept).long()
    return torch.zeros(tokens, device=device).index_fill_(0, chosen_K, 1.0)


def distinct_scores(x_BNC: Tensor, valid_BN: Tensor | None) -> Tensor:
    """Return scores, float32 [B, N], that are lower for tokens more similar to an earlier one.

    Tokens are visited in an order whose prefixes are spread evenly over the positions, and each is
    compared with those before it, so that of two similar tokens one has a high score.

    Args:
        x_BNC: features, compared by their cosine.
        valid_BN: bool, False = padding, which is ignored; None if there is none.

    Returns:
        Minus the largest cosine, in [-1, 1]; 2 for tokens that are compared with none. Carries no
        gradient.
    """
    batch, tokens = x_BNC.shape[0], int(x_BNC.shape[1])
    visited_N = _spread_order(tokens, x_BNC.device)
    direction_BNC = F.normalize(x_BNC.detach().float(), dim=-1)[:, visited_N]
    # One block in compiled graphs, which must not depend on the batch size.
    compiling = torch.compiler.is_compiling()
    rows = tokens if compiling else max(1, SIMILARITIES_AT_ONCE // max(1, int(batch) * tokens))
    alike_BN = direction_BNC.new_empty(batch, tokens)
    for start in range(0, tokens, rows):
        end = min(start + rows, tokens)
        with without_autocast(x_BNC.device):
            alike_BnN = direction_BNC[:, start:end] @ direction_BNC[:, :end].transpose(1, 2)
        place = torch.arange(end, device=x_BNC.device)
        counts = place < place[start:, None]
        if valid_BN is not None:
            counts = counts & valid_BN[:, None, visited_N[:end]]
        alike_BN[:, visited_N[start:end]] = alike_BnN.masked_fill(~counts, -2.0).amax(dim=2)
    return -alike_BN


def _spread_order(tokens: int, device: torch.device) -> Tensor:
    """Return the positions, long [N], in bit-reversed order: 0, N / 2, N / 4, 3 N / 4, ..."""
    bits = max(1, (tokens - 1).bit_length())
    place_N = torch.arange(tokens, device=device)
    mirrored_N = sum((place_N >> bit & 1) << (bits - 1 - bit) for bit in range(bits))
    assert isinstance(mirrored_N, Tensor)
    return mirrored_N.argsort()


def even_grid_scores(grid: tuple[int, int], kept: tuple[int, int], device: torch.device) -> Tensor:
    """Return scores [N] of a grid's cells, highest at evenly spaced rows and columns."""
    rows, columns = (
        even_scores(size, wanted, device) for size, wanted in zip(grid, kept, strict=True)
    )
    return (rows[:, None] * columns).flatten()


def pooled_queries(
    x_BNC: Tensor,
    grid: tuple[int, int] | None,
    kept_grid: tuple[int, int] | None,
    kept: int,
    valid_BN: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return means of tokens over the cells of a coarser grid (adaptive average pooling).

    Args:
        x_BNC: the tokens.
        grid: rows and columns of the tokens; None: one line.
        kept_grid: rows and columns of the means; None: one line of ``kept``.
        kept: number K of means.
        valid_BN: bool, False = padding, which no mean includes; None if there is none.

    Returns:
        The means, float32 [B, K, C]; the middle token of each cell, long [B, K]; and bool [B, K],
        False for cells of padding alone (None if there is no padding).

    Source: Token Transforming, arXiv 2506.05709, Table 8 ("uniform"); Hourglass's first centers.
    """
    if grid is None or kept_grid is None:
        grid, kept_grid = (1, x_BNC.shape[1]), (1, kept)
    near_KN = torch.ones(1, 1, dtype=torch.bool, device=x_BNC.device)
    middle_K = torch.zeros(1, dtype=torch.long, device=x_BNC.device)
    for size, wanted in zip(grid, kept_grid, strict=True):
        place = torch.arange(size, device=x_BNC.device)
        cell = torch.arange(wanted, device=x_BNC.device)[:, None]
        inside = (place >= cell * size // wanted) & (place * wanted < (cell + 1) * size)
        near_KN = (near_KN[:, None, :, None] & inside[None, :, None, :]).flatten(2).flatten(0, 1)
        middle = ((cell[:, 0] * size // wanted) + (-(-(cell[:, 0] + 1) * size // wanted)) - 1) // 2
        middle_K = (middle_K[:, None] * size + middle).flatten()
    share_BKN = near_KN.float().expand(x_BNC.shape[0], -1, -1)
    valid_BK = None
    if valid_BN is not None:
        share_BKN = share_BKN * valid_BN[:, None]
        valid_BK = share_BKN.sum(dim=2) > 0
    with without_autocast(x_BNC.device):
        total_BKC = share_BKN @ x_BNC.float()
    mean_BKC = total_BKC / share_BKN.sum(dim=2).clamp_min(1.0)[..., None]
    return mean_BKC, middle_K.expand(x_BNC.shape[0], -1), valid_BK
