"""Local soft clustering (Hourglass), for comparison in dense tasks.

Cluster centers start as means over a coarse grid. A few times, tokens are softly assigned to the
centers around them by distance, and centers become the means of their tokens. A token is restored
from its nearest centers.

Shapes: B sequence, N token, K center, C channel, T centers that restore a token.
Source: Liang et al., Expediting large-scale vision transformer for dense prediction without
fine-tuning, arXiv 2210.01035; the numbers are those of its published DINO Swin-L configs.
"""

import torch
from torch import Tensor

from tokendetr.tokens import Assignment, DenseAssignment, Recovery
from tokendetr.tokens.assignment import without_autocast

ITERATIONS = 3
TEMPERATURE = 100.0
NEIGHBORHOOD = 5
"""Rows and columns of centers that a token may belong to."""
RECOVERED_FROM = 25
"""Centers T that restore a token."""


def cluster_locally(
    x_BNC: Tensor,
    grid: tuple[int, int],
    kept: tuple[int, int],
    valid_BN: Tensor | None = None,
) -> tuple[Assignment, Tensor | None, Recovery]:
    """Cluster the tokens of a grid.

    Args:
        x_BNC: the tokens, row by row.
        grid: height and width; N is their product.
        kept: rows and columns of centers; K is their product.
        valid_BN: bool, False = padding; None if there is none.

    Returns:
        The assignment; bool [B, K], False for centers without a token (None if there are none); and
        the recovery.
    """
    near_KN, own_KN = _neighbors(grid, kept, x_BNC.device)
    x_BNC = x_BNC.float()
    with without_autocast(x_BNC.device):
        share_BKN = own_KN.float().expand(x_BNC.shape[0], -1, -1)
        if valid_BN is not None:
            share_BKN = share_BKN * valid_BN[:, None]
        center_BKC = _means(share_BKN, x_BNC)
        valid_BK = None if valid_BN is None else share_BKN.sum(dim=2) > 0
        for _ in range(ITERATIONS):
            logits_BKN = _closeness(center_BKC, x_BNC).masked_fill(~near_KN, float("-inf"))
            if valid_BK is not None:
                logits_BKN = logits_BKN.masked_fill(~valid_BK[..., None], -1e30)
            share_BKN = logits_BKN.softmax(dim=1)
            if valid_BN is not None and valid_BK is not None:
                share_BKN = share_BKN * (valid_BN[:, None] & valid_BK[..., None])
            center_BKC = _means(share_BKN, x_BNC)
        close_BNK = _closeness(center_BKC, x_BNC).transpose(1, 2)
    if valid_BK is not None:
        close_BNK = close_BNK.masked_fill(~valid_BK[:, None], -1e30)
    nearest = close_BNK.detach().topk(min(RECOVERED_FROM, close_BNK.shape[2]), dim=2)
    recovery = Recovery(nearest.indices, nearest.values.softmax(dim=2))
    return DenseAssignment(share_BKN), valid_BK, recovery


def grid_anchors(grid: tuple[int, int], kept: tuple[int, int], device: torch.device) -> Tensor:
    """Return the token [K] in the middle of each center's cell."""
    rows, columns = (
        ((torch.arange(wanted, device=device) + 0.5) * size / wanted).long()
        for size, wanted in zip(grid, kept, strict=True)
    )
    return (rows[:, None] * grid[1] + columns).flatten()


def _neighbors(
    grid: tuple[int, int], kept: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return two bool [K, N]: centers that a token may belong to, and cells of initial centers."""
    near, own = [], []
    for size, wanted in zip(grid, kept, strict=True):
        token = torch.arange(size, device=device)
        center = torch.arange(wanted, device=device)[:, None]
        home = (token * wanted) // size
        near.append((center - home).abs() <= NEIGHBORHOOD // 2)
        own.append((token >= (center * size) // wanted) & (token * wanted < (center + 1) * size))
    return tuple(  # type: ignore[return-value]
        (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)
        for rows, columns in (near, own)
    )


def _means(share_BKN: Tensor, x_BNC: Tensor) -> Tensor:
    return (share_BKN @ x_BNC) / share_BKN.sum(dim=2).clamp_min(1e-12)[..., None]


def _closeness(center_BKC: Tensor, x_BNC: Tensor) -> Tensor:
    """Return -distance^2 / temperature, up to a term of the token alone."""
    square_BK1 = center_BKC.square().sum(dim=2, keepdim=True)
    product_BKN = center_BKC @ x_BNC.transpose(1, 2)
    # Without |x|^2, which is the same for all centers: it affects neither softmax nor order.
    return (2 * product_BKN - square_BK1) / TEMPERATURE
