"""Position embeddings of queries: sine embeddings of proposals and of anchors.

Shapes: B image, Q query, C channel.
"""

from __future__ import annotations

from detrex.layers import get_sine_pos_embed
from torch import Tensor


def anchor_embedding(anchor_BQ4: Tensor, embed_dim: int) -> Tensor:
    """Return the sine embedding [B, Q, 2 C] of anchors cxcywh in 0..1, y first as in DAB-DETR."""
    return get_sine_pos_embed(anchor_BQ4, num_pos_feats=embed_dim // 2)


def proposal_embedding(boxes_BQ4: Tensor, embed_dim: int) -> Tensor:
    """Return the sine embedding [B, Q, 2 C] of proposals, cxcywh in 0..1.

    x comes first, as in Deformable DETR.
    """
    return get_sine_pos_embed(boxes_BQ4, num_pos_feats=embed_dim // 2, exchange_xy=False)
