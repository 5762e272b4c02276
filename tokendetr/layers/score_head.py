"""The score head of learned sparsifiers.

Shapes: B image, N tokens, C channel.
"""

import torch
from torch import Tensor, nn


class ScoreHead(nn.Module):
    """Scores tokens by their own features and by the mean features of their set.

    Half of the hidden channels stays per token, the other half is replaced by its mean over the
    real tokens.

    Args:
        embed_dim: channels C, a multiple of 4.
        valid_mean: exclude padding from the mean. The published code includes it, so that a score
            depends on how much padding the image has in its batch; False reproduces its numbers.

    Raises:
        ValueError: ``embed_dim`` is not a multiple of 4.

    Source: Sparse DETR, arXiv 2111.14330, appendix A.1; Focus-DETR, arXiv 2307.12612, section 3.2
    uses the same network. Parameter names of the published code.
    Differs: padding is left out of the mean.
    """

    def __init__(self, *, embed_dim: int = 256, valid_mean: bool = True) -> None:
        super().__init__()
        if embed_dim < 4 or embed_dim % 4:
            raise ValueError(f"embed_dim must be a positive multiple of 4, got {embed_dim}")
        self.valid_mean = valid_mean
        self.layer1 = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim), nn.GELU()
        )
        self.layer2 = nn.Sequential(
            nn.Linear(embed_dim, embed_dim // 2),
            nn.GELU(),
            nn.Linear(embed_dim // 2, embed_dim // 4),
            nn.GELU(),
            nn.Linear(embed_dim // 4, 1),
        )

    def forward(self, x_BNC: Tensor, valid_BN: Tensor | None = None) -> Tensor:
        """Return a logit per token.

        Args:
            x_BNC: tokens of one level or of all.
            valid_BN: bool, True for real tokens; None if all are.

        Returns:
            Logits [B, N]; those of padding are meaningless.
        """
        hidden_BNC = self.layer1(x_BNC)
        own_BND, shared_BND = hidden_BNC.chunk(2, dim=-1)
        if valid_BN is None or not self.valid_mean:
            mean_B1D = shared_BND.mean(dim=1, keepdim=True)
        else:
            weight_BN1 = valid_BN[..., None].to(shared_BND.dtype)
            count_B11 = weight_BN1.sum(dim=1, keepdim=True).clamp_min(1)
            mean_B1D = (shared_BND * weight_BN1).sum(dim=1, keepdim=True) / count_B11
        mixed_BNC = torch.cat([own_BND, mean_B1D.expand_as(own_BND)], dim=-1)
        return self.layer2(mixed_BNC).squeeze(-1)
