"""Which tokens the reduced ones are built around.

Shapes: B sequence, N token, K chosen token.
"""

import torch
from torch import Tensor


def choose(
    score_BN: Tensor, kept: int, valid_BN: Tensor | None = None, kept_B: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the tokens with the highest scores, in order of position.

    Args:
        score_BN: float; of equals the first are taken.
        kept: number K of tokens.
        valid_BN: bool, False = padding, which is never chosen; None where there is none.
        kept_B: long, of these how many each sequence really takes, at most K; None: K.

    Returns:
        Long [B, K], distinct in a sequence, and bool [B, K], False for places that no token takes:
        they are padding's, in order of position like the others. None where there is no padding.
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
    """Return the chosen tokens and as much padding as fills up K places, in order of position.

    Args:
        taken_BN: bool, the chosen tokens, at most K of a sequence.
        valid_BN: bool, False = padding.
        kept: number K of places.

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


def even_grid_scores(grid: tuple[int, int], kept: tuple[int, int], device: torch.device) -> Tensor:
    """Return scores [N] of a grid's cells whose highest are evenly spaced rows and columns."""
    rows, columns = (
        even_scores(size, wanted, device) for size, wanted in zip(grid, kept, strict=True)
    )
    return (rows[:, None] * columns).flatten()
