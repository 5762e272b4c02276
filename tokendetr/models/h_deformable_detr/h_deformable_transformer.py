"""H-Deformable DETR's transformer: that of Deformable DETR with a second group of queries.

Shapes: Q query, D channels of the learned queries.

Source: DETRs with Hybrid Matching, arXiv 2207.13080; names and arguments of detrex
``projects/h_deformable_detr``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokendetr.detector import (
    DeformableDecoder,
    Pyramid,
    ReferencePointTransformer,
    TransformerOutput,
)
from tokendetr.encoder import TokenEncoder


def blocked_between(num_queries: int, num_first: int, device: torch.device) -> Tensor:
    """Return the self-attention mask [Q, Q] that separates two groups of queries.

    It is True (blocked) between the first ``num_first`` queries and the others.
    """
    second_Q = torch.arange(num_queries, device=device) >= num_first
    return second_Q[:, None] != second_Q[None]


class HDeformableDetrTransformerEncoder(TokenEncoder):
    """Dense deformable encoder under upstream's name and arguments."""


class HDeformableDetrTransformerDecoder(DeformableDecoder):
    """Decoder with fixed query positions that looks forward twice unless told otherwise."""

    looks_forward_twice = True


class HDeformableDetrTransformer(ReferencePointTransformer):
    """Encoder, query initialization, decoder.

    Args: those of :class:`tokendetr.detector.ReferencePointTransformer`, and

        mixed_selection: with two stages, positions from the proposals but learned content.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: DeformableDecoder,
        num_feature_levels: int = 4,
        as_two_stage: bool = False,
        two_stage_num_proposals: int = 300,
        mixed_selection: bool = True,
    ) -> None:
        super().__init__(
            encoder, decoder, num_feature_levels, as_two_stage, two_stage_num_proposals
        )
        self.mixed_selection = mixed_selection and as_two_stage

    def forward(
        self,
        pyramid: Pyramid,
        learned_QD: Tensor | None,
        *,
        num_queries: int | None = None,
        num_first: int | None = None,
    ) -> TransformerOutput:
        """Encode the pyramid and decode.

        Args:
            pyramid: the features.
            learned_QD: learned queries, at least ``num_queries``; None if there are none.
            num_queries: Q of both groups; None for ``two_stage_num_proposals``.
            num_first: queries of the first group, which does not attend to the second; None: all.
        """
        if num_queries is None:
            num_queries = self.two_stage_num_proposals
        if learned_QD is not None:
            learned_QD = learned_QD[:num_queries]
        encoded = self.encode(pyramid)
        proposals, queries = self.first_queries(encoded, learned_QD, num_queries)
        blocked_QQ = None
        if num_first is not None and num_first < queries.num_queries:
            device = encoded.memory_BNC.device
            blocked_QQ = blocked_between(queries.num_queries, num_first, device)
        decoded = self.decoder(queries, encoded.memory_BNC, encoded.layout, blocked_QQ=blocked_QQ)
        return TransformerOutput(decoded, proposals)
