"""Position embeddings of queries: fixed ones of proposals, and sine(anchor) -> MLP of DAB-like
decoders.

Shapes: B image, Q query, C channel.
"""

from __future__ import annotations

from detrex.layers import get_sine_pos_embed
from torch import Tensor


def anchor_embedding(anchor_BQ4: Tensor, embed_dim: int) -> Tensor:
    """Sine embedding [B, Q, 2 C] of anchors cxcywh (0..1), the y part first as in DAB-DETR."""
    return get_sine_pos_embed(anchor_BQ4, num_pos_feats=embed_dim // 2)


def proposal_embedding(boxes_BQ4: Tensor, embed_dim: int) -> Tensor:
    """Sine embedding [B, Q, 2 C] of proposals cxcywh (0..1), the x part first as in Deformable
    DETR."""
    return get_sine_pos_embed(boxes_BQ4, num_pos_feats=embed_dim // 2, exchange_xy=False)
