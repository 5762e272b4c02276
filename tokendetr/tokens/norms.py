"""Lengths of tokens, by which their cosines are computed.

Shapes: B image, N tokens, C channel.
"""

import torch
from torch import Tensor

ZERO_NORM = 1e-12
"""Shorter vectors count as zero, similar to none."""


@torch.no_grad()
def token_norms(x_BNC: Tensor) -> Tensor:
    """Return each token's length, at least 1e-12, [B, N], float32 (float64 for float64 tokens)."""
    x_BNC = x_BNC if x_BNC.dtype == torch.float64 else x_BNC.float()
    return torch.linalg.vector_norm(x_BNC, dim=-1).clamp_min_(ZERO_NORM)
