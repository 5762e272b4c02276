"""Layer normalization over channels in either memory layout."""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.Module):
    """Normalize over the channel dimension of [B, H, W, C] or [B, C, H, W].

    Args:
        normalized_shape: number of channels.
        eps: added to the variance.
        channel_last: True for [B, H, W, C] (any number of leading dimensions), False for [B, C, H,
            W].
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-6, channel_last: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.channel_last = channel_last
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized, scaled and shifted input, same shape."""
        if self.channel_last:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        centered = x - x.mean(1, keepdim=True)
        variance = centered.pow(2).mean(1, keepdim=True)
        normalized = centered / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * normalized + self.bias[:, None, None]
