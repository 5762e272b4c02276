"""Self-attention among the most object-like of an encoder layer's tokens (dual attention).

Shapes: B image, N all tokens, K kept tokens, Q object token, C channel.
"""

from typing import Literal

import torch
from detrex.layers import MultiheadAttention
from torch import Tensor, nn

from tokendetr.tokens import Counts, TokenMap, map_counts, put_rows, take_rows, topk_valid
from tokendetr.tokens.assignment import without_autocast

__all__ = ["FINE_SCORES", "FineScore", "ObjectAttention", "attend_objects", "object_scores"]

FineScore = Literal["probability", "logits"]
FINE_SCORES: tuple[FineScore, ...] = ("probability", "logits")
"""Object tokens have the best product of two scores: of their sigmoids, or of raw logits."""


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


@torch.no_grad()
def object_scores(
    tokens_BKC: Tensor,
    foreground_BN: Tensor,
    token_map: TokenMap,
    *,
    class_head: nn.Module,
    fine_score: FineScore = "probability",
) -> Tensor:
    """Return how object-like kept tokens are: foreground score times best class score, [B, K].

    Args:
        tokens_BKC: the tokens before the layer.
        foreground_BN: logits of all tokens.
        token_map: the layer's.
        class_head: predicts class logits of tokens.
        fine_score: one of :data:`FINE_SCORES`.
    """
    # Autocast would cache casts of the head's weights made without gradients, and the two-stage
    # head would reuse them.
    with without_autocast(tokens_BKC.device):
        dtype = next(class_head.parameters()).dtype
        category_BK = class_head(tokens_BKC.to(dtype)).amax(dim=-1)
        foreground_BK = token_map.select(foreground_BN.detach()).to(dtype)
        if fine_score == "probability":
            category_BK, foreground_BK = category_BK.sigmoid(), foreground_BK.sigmoid()
        return category_BK * foreground_BK


def attend_objects(
    attention: nn.Module,
    tokens_BKC: Tensor,
    score_BK: Tensor,
    token_map: TokenMap,
    *,
    pos_BNC: Tensor | None,
    num_objects: int,
    counts: Counts,
    valid_BK: Tensor | None,
) -> Tensor:
    """Return kept tokens [B, K, C] of which the object tokens attended to each other.

    Args:
        attention: an :class:`ObjectAttention`.
        tokens_BKC: the tokens before the layer.
        score_BK: as :func:`object_scores` returns them.
        token_map: the layer's.
        pos_BNC: positions of all tokens, or None.
        num_objects: maximum number of object tokens of an image, at least 1.
        counts: number of an image's tokens that may be object tokens.
        valid_BK: bool, False for tokens that may not; None if all may.
    """
    index_BQ, valid_BQ = topk_valid(
        score_BK,
        map_counts(counts, lambda count: min(num_objects, count)),
        valid_BN=valid_BK,
        valid_counts=counts,
    )
    objects_BQC = take_rows(tokens_BKC, index_BQ)
    anchor_BK = token_map.anchor_BK
    token_BQ = index_BQ if anchor_BK is None else anchor_BK.gather(1, index_BQ)
    pos_BQC = None if pos_BNC is None else take_rows(pos_BNC, token_BQ)
    updated_BQC = attention(objects_BQC, pos_BQC, valid_BQ)
    if valid_BQ is not None:
        updated_BQC = torch.where(valid_BQ[..., None], updated_BQC, objects_BQC)
    return put_rows(tokens_BKC, index_BQ, updated_BQC)
