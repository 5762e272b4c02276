"""Self-attention among the most object-like tokens.

Shapes: B image, Q object token, C channel.
"""

from detrex.layers import MultiheadAttention
from torch import Tensor, nn


class ObjectAttention(nn.Module):
    """Self-attention among an image's object tokens, with residual and norm.

    Args:
        embed_dim: channels C.
        num_heads: attention heads.
        dropout: of the attention weights.

    Source: Focus-DETR, arXiv 2307.12612, algorithm 1, lines 5 to 8.
    """

    def __init__(self, *, embed_dim: int = 256, num_heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = MultiheadAttention(
            embed_dim=embed_dim, num_heads=num_heads, attn_drop=dropout, batch_first=True
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(
        self, tokens_BQC: Tensor, pos_BQC: Tensor | None, valid_BQ: Tensor | None
    ) -> Tensor:
        """Return the updated tokens.

        Args:
            tokens_BQC: object tokens.
            pos_BQC: their positions.
            valid_BQ: bool, False for padding entries, which nothing attends to; None if there are
                none.
        """
        padding_BQ = None if valid_BQ is None else ~valid_BQ
        attended_BQC = self.attention(
            tokens_BQC, query_pos=pos_BQC, key_pos=pos_BQC, key_padding_mask=padding_BQ
        )
        return self.norm(attended_BQC)
