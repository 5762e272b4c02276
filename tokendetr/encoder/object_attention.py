"""Self-attention among the most object-like of an encoder layer's tokens (dual attention).

Shapes: B image, N all tokens, K kept tokens, Q object token, C channel.
"""

from typing import Literal

import torch
from detrex.layers import MultiheadAttention
from torch import Tensor, nn

from tokendetr.encoder.sparsifier import EncoderContext
from tokendetr.errors import check_choice
from tokendetr.tokens import Counts, TokenMap, map_counts, put_rows, take_rows, topk_valid
from tokendetr.tokens.assignment import without_autocast

__all__ = ["FINE_SCORES", "DualAttention", "FineScore", "ObjectAttention"]

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


class DualAttention(nn.ModuleList):
    """Attention among object tokens before every layer of an encoder.

    Object tokens are the kept tokens with the best product of a method's score and the detector's
    class score.

    Args:
        num_layers: layers of the encoder, each with an :class:`ObjectAttention` of its own.
        num_objects: maximum number of object tokens of an image; 0: no attention, no parameters.
        fine_score: one of :data:`FINE_SCORES`.
        embed_dim: channels C.
        num_heads: attention heads.

    Raises:
        ValueError: ``num_objects`` is negative, or ``fine_score`` is unknown.

    Source: Focus-DETR, arXiv 2307.12612, section 3.3 and algorithm 1.
    """

    def __init__(
        self,
        num_layers: int,
        num_objects: int,
        fine_score: FineScore,
        *,
        embed_dim: int,
        num_heads: int,
    ) -> None:
        check_choice("fine_score", fine_score, FINE_SCORES)
        if num_objects < 0:
            raise ValueError(f"num_objects must be at least 0, got {num_objects}")
        super().__init__(
            ObjectAttention(embed_dim=embed_dim, num_heads=num_heads)
            for _ in range(num_layers if num_objects else 0)
        )
        self.num_objects = num_objects
        self.fine_score: FineScore = fine_score

    def forward(
        self,
        layer: int,
        tokens_BKC: Tensor,
        score_BN: Tensor,
        token_map: TokenMap,
        context: EncoderContext,
        *,
        class_head: nn.Module,
        counts: Counts,
        valid_BK: Tensor | None,
    ) -> Tensor:
        """Return kept tokens [B, K, C] of which the object tokens attended to each other.

        Args:
            layer: index of the layer, from 0.
            tokens_BKC: the kept tokens before the layer.
            score_BN: the method's score of all tokens, logits.
            token_map: the layer's.
            context: the forward pass.
            class_head: predicts class logits of tokens.
            counts: number of an image's kept tokens that may be object tokens.
            valid_BK: bool, False for kept tokens that may not; None if all may.
        """
        score_BK = self._object_scores(tokens_BKC, token_map.select(score_BN.detach()), class_head)
        context.recorder.record_layer_score("object", score_BK)
        index_BQ, valid_BQ = topk_valid(
            score_BK,
            map_counts(counts, lambda count: min(self.num_objects, count)),
            valid_BN=valid_BK,
            valid_counts=counts,
        )
        objects_BQC = take_rows(tokens_BKC, index_BQ)
        anchor_BK, pos_BNC = token_map.anchor_BK, context.query_pos_BNC
        token_BQ = index_BQ if anchor_BK is None else anchor_BK.gather(1, index_BQ)
        pos_BQC = None if pos_BNC is None else take_rows(pos_BNC, token_BQ)
        updated_BQC = self[layer](objects_BQC, pos_BQC, valid_BQ)
        if valid_BQ is not None:
            updated_BQC = torch.where(valid_BQ[..., None], updated_BQC, objects_BQC)
        return put_rows(tokens_BKC, index_BQ, updated_BQC)

    @torch.no_grad()
    def _object_scores(self, tokens_BKC: Tensor, score_BK: Tensor, class_head: nn.Module) -> Tensor:
        """Return how object-like kept tokens are: their score times their best class score."""
        # Autocast would cache casts of the head's weights made without gradients, and the two-stage
        # head would reuse them.
        with without_autocast(tokens_BKC.device):
            dtype = next(class_head.parameters(), torch.empty(0)).dtype  # none if quantized
            category_BK = class_head(tokens_BKC.to(dtype)).amax(dim=-1)
            score_BK = score_BK.to(dtype)
            if self.fine_score == "probability":
                category_BK, score_BK = category_BK.sigmoid(), score_BK.sigmoid()
            return category_BK * score_BK
