"""Deformable DETR's transformer: learned queries or two-stage proposals, with fixed query
positions.

Dimensions: B image, Q query, C channel.

Source: Deformable DETR, arXiv 2010.04159; names and arguments of detrex
``projects/deformable_detr``.
"""

from __future__ import annotations

from torch import Tensor, nn

from tokendetr.detector import (
    DeformableDecoder,
    EncodedTokens,
    ObjectQueries,
    Proposals,
    Pyramid,
    TransformerOutput,
    TwoStageTransformer,
    first_class_score,
    learned_queries,
)
from tokendetr.encoder import TokenEncoder


class DeformableDetrTransformerEncoder(TokenEncoder):
    """Dense deformable encoder under upstream's name and arguments."""


class DeformableDetrTransformerDecoder(DeformableDecoder):
    """Decoder with fixed query positions; refines boxes where the detector gives it box heads."""


class DeformableDetrTransformer(TwoStageTransformer):
    """Encoder, query initialisation, decoder.

    Args:
        encoder: encoder module; see ``tokendetr.encoder``.
        decoder: decoder module.
        num_feature_levels: levels of the pyramid.
        as_two_stage: start from the encoder's proposals instead of learned queries.
        two_stage_num_proposals: number of queries with two stages.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: DeformableDecoder,
        num_feature_levels: int = 4,
        as_two_stage: bool = False,
        two_stage_num_proposals: int = 300,
    ) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_feature_levels=num_feature_levels)
        self.as_two_stage = as_two_stage
        self.two_stage_num_proposals = two_stage_num_proposals
        if as_two_stage:
            self.add_proposal_projection()
            self.add_proposal_positions()
        else:
            self.reference_points = nn.Linear(self.embed_dim, 2)
        self.init_weights()

    def init_weights(self) -> None:
        """As the base class; points start at the centre, spread by the learned positions."""
        super().init_weights()
        if not self.as_two_stage:
            nn.init.xavier_normal_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def forward(self, pyramid: Pyramid, query_embed_QD: Tensor | None) -> TransformerOutput:
        """Encode the pyramid and decode.

        Args:
            pyramid: the features.
            query_embed_QD: learned queries [Q, 2 C], positions then content; unused with two
                stages.
        """
        encoded = self.encode(pyramid)
        proposals = None
        if self.as_two_stage:
            proposals, queries = self._propose_queries(encoded)
        elif query_embed_QD is not None:
            queries = self._learned_queries(query_embed_QD, len(encoded.memory_BNC))
        else:
            raise ValueError("without two stages the transformer needs learned queries")
        decoded = self.decoder(queries, encoded.memory_BNC, encoded.layout)
        return TransformerOutput(decoded, proposals)

    def _learned_queries(self, query_embed_QD: Tensor, batch_size: int) -> ObjectQueries:
        position_QC, content_QC = query_embed_QD.split(self.embed_dim, dim=1)
        position_BQC = learned_queries(position_QC, batch_size)
        return ObjectQueries(
            content_BQC=learned_queries(content_QC, batch_size),
            reference_BQX=self.reference_points(position_BQC).sigmoid(),
            position_BQC=position_BQC,
        )

    def _propose_queries(self, encoded: EncodedTokens) -> tuple[Proposals, ObjectQueries]:
        proposals = self.propose(
            encoded, score=first_class_score, limit=self.two_stage_num_proposals
        )
        boxes_BQ4 = proposals.select(proposals.boxes_logit_BN4).detach().sigmoid()
        position_BQC, content_BQC = self.proposal_positions(boxes_BQ4)
        queries = ObjectQueries(content_BQC, boxes_BQ4, position_BQC, proposals.valid_BQ)
        return proposals, queries
