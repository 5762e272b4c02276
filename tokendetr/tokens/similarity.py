"""How similar tokens are: coherence of windows, and unit vectors of a level compared one by one.

Shapes: B image, N all tokens, U tokens of the last levels, C channel, S windows.
"""

import torch
from torch import Tensor

from tokendetr.ops.token_merging import merges_by_kernel, token_similarity_kernel
from tokendetr.tokens.norms import token_norms
from tokendetr.tokens.windows import LevelWindows, window_coherence


@torch.no_grad()
def token_similarity(
    x_BNC: Tensor, windows: LevelWindows | None, start: int
) -> tuple[Tensor | None, Tensor]:
    """Return the coherence of windows, and the unit vectors of the tokens from ``start`` on.

    Args:
        x_BNC: tokens of all levels.
        windows: of some levels; None: none.
        start: the first token whose unit vector is wanted, N for none.

    Returns:
        :func:`tokendetr.tokens.window_coherence` [S], or None without windows; and unit vectors [B,
        U, C], float32 (float64 for float64 tokens).
    """
    if x_BNC.dtype == torch.float32 and merges_by_kernel(x_BNC):
        sizes = () if windows is None else windows.class_sizes
        score_S, unit_BUC = token_similarity_kernel(
            x_BNC, None if windows is None else windows.token_A, sizes, start
        )
        return (None if windows is None else score_S), unit_BUC
    x_BNC = x_BNC if x_BNC.dtype == torch.float64 else x_BNC.float()
    norm_BN = token_norms(x_BNC)
    unit_BUC = x_BNC[:, start:] / norm_BN[:, start:, None]
    if windows is None:
        return None, unit_BUC
    return window_coherence(x_BNC, norm_BN.reciprocal(), windows), unit_BUC
