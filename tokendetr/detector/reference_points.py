"""Detectors with reference points or boxes: Deformable DETR and H-Deformable DETR.

A query has one position for all decoder layers, learned or made from a proposal.

Shapes: B image, Q query, C channel, D = C or 2 C channels of the learned queries.

Source: Deformable DETR, arXiv 2010.04159; mixed selection: DINO, arXiv 2203.03605, section 3.4;
content from memory: Efficient DETR, arXiv 2104.01318, as adopted by Sparse DETR.
"""

from __future__ import annotations

from torch import Tensor, nn

from tokendetr.detector.consistency import check_stages
from tokendetr.detector.decoder import DeformableDecoder
from tokendetr.detector.detector import (
    DeformableDetector,
    DetectorParts,
    DetectorSizes,
    PixelScale,
)
from tokendetr.detector.proposals import Proposals, first_class_score, max_class_score
from tokendetr.detector.pyramid import Pyramid
from tokendetr.detector.queries import ObjectQueries, learned_queries
from tokendetr.detector.transformer import EncodedTokens, TransformerOutput, TwoStageTransformer


class ReferencePointTransformer(TwoStageTransformer):
    """Encoder, query initialization, decoder.

    Args:
        encoder: encoder module; see ``tokendetr.encoder``.
        decoder: decoder module.
        num_feature_levels: levels of the pyramid.
        as_two_stage: start from the encoder's proposals instead of learned queries.
        two_stage_num_proposals: number of queries with two stages.
        content_from_memory: with two stages, queries start as the tokens that they were selected
            from, and only their positions are made from the proposals' boxes.
        any_class_proposals: with two stages, tokens are selected by their best class; otherwise by
            class 0, which binary targets train.

    Attributes:
        mixed_selection: with two stages, positions come from the proposals but content is learned.
    """

    mixed_selection = False

    def __init__(
        self,
        encoder: nn.Module,
        decoder: DeformableDecoder,
        num_feature_levels: int = 4,
        as_two_stage: bool = False,
        two_stage_num_proposals: int = 300,
        content_from_memory: bool = False,
        any_class_proposals: bool = False,
    ) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_feature_levels=num_feature_levels)
        self.as_two_stage = as_two_stage
        self.two_stage_num_proposals = two_stage_num_proposals
        self.content_from_memory = content_from_memory
        self.score = max_class_score if any_class_proposals else first_class_score
        if as_two_stage:
            self.add_proposal_projection()
            self.add_proposal_positions(with_content=not content_from_memory)
        else:
            self.reference_points = nn.Linear(self.embed_dim, 2)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialize as the base class does; reference points start near the image's center."""
        super().init_weights()
        if not self.as_two_stage:
            nn.init.xavier_normal_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def forward(self, pyramid: Pyramid, learned_QD: Tensor | None) -> TransformerOutput:
        """Encode the pyramid and decode.

        Args:
            pyramid: the features.
            learned_QD: learned queries; see :meth:`first_queries`.
        """
        encoded = self.encode(pyramid)
        proposals, queries = self.first_queries(encoded, learned_QD, self.two_stage_num_proposals)
        return TransformerOutput(self.decode(encoded, queries, None), proposals)

    def first_queries(
        self, encoded: EncodedTokens, learned_QD: Tensor | None, limit: int
    ) -> tuple[Proposals | None, ObjectQueries]:
        """Make the queries that enter the decoder.

        Args:
            encoded: the encoder's output.
            learned_QD: without two stages positions then content, D = 2 C; with mixed selection
                content, D = C; else unused.
            limit: with two stages, the wanted number of queries.

        Returns:
            The proposals (None without two stages) and the queries.

        Raises:
            ValueError: the learned queries are missing.
        """
        if learned_QD is None and (self.mixed_selection or not self.as_two_stage):
            raise ValueError(
                "without two stages, or with mixed selection, the transformer needs learned queries"
            )
        if self.as_two_stage:
            return self._propose_queries(encoded, learned_QD, limit)
        assert learned_QD is not None
        return None, self._learned_queries(learned_QD, encoded.memory_BNC.shape[0])

    def _learned_queries(self, learned_QD: Tensor, batch_size: int) -> ObjectQueries:
        position_QC, content_QC = learned_QD.split(self.embed_dim, dim=1)
        position_BQC = learned_queries(position_QC, batch_size)
        return ObjectQueries(
            content_BQC=learned_queries(content_QC, batch_size),
            reference_BQX=self.reference_points(position_BQC).sigmoid(),
            position_BQC=position_BQC,
        )

    def _propose_queries(
        self, encoded: EncodedTokens, learned_QD: Tensor | None, limit: int
    ) -> tuple[Proposals, ObjectQueries]:
        proposals = self.propose(encoded, score=self.score, limit=limit)
        boxes_BQ4 = proposals.select(proposals.boxes_logit_BN4).detach().sigmoid()
        position_BQC, content_BQC = self.proposal_positions(boxes_BQ4)
        if self.content_from_memory:
            content_BQC = proposals.select(encoded.memory_BNC)
        if self.mixed_selection and learned_QD is not None:
            batch_size, num_queries = proposals.indices_BQ.shape
            content_BQC = learned_queries(learned_QD[:num_queries], batch_size)
        queries = ObjectQueries(content_BQC, boxes_BQ4, position_BQC, proposals.valid_BQ)
        return proposals, queries


class ReferencePointDetector(DeformableDetector):
    """Deformable detector: plain, with iterative box refinement, or with two stages.

    Args:
        parts: the modules; the transformer is a :class:`ReferencePointTransformer`.
        sizes: the numbers.
        pixels: how images are normalized.
        aux_loss: train every decoder layer.
        with_box_refine: each layer refines the boxes of the one before, with heads of its own.
        as_two_stage: take queries from the encoder's proposals.
        query_channels: channels D of the learned queries; 0 for none.

    Raises:
        ValueError: ``as_two_stage`` differs from the transformer's, or comes without
            ``with_box_refine``.
    """

    query_embedding: nn.Embedding  # absent if query_channels is 0

    def __init__(
        self,
        parts: DetectorParts,
        sizes: DetectorSizes,
        pixels: PixelScale,
        *,
        aux_loss: bool,
        with_box_refine: bool,
        as_two_stage: bool,
        query_channels: int,
    ) -> None:
        check_stages(as_two_stage, parts.transformer)
        if as_two_stage and not with_box_refine:
            raise ValueError("model.as_two_stage needs model.with_box_refine=True")
        learned: dict[str, nn.Module] = {}
        if query_channels > 0:
            learned["query_embedding"] = nn.Embedding(sizes.num_queries, query_channels)
        super().__init__(parts, sizes, pixels, query_embeddings=learned, aux_loss=aux_loss)
        self.with_box_refine = with_box_refine
        self.as_two_stage = as_two_stage
        self.add_heads(two_stage=as_two_stage, shared=not with_box_refine)
        if with_box_refine:
            self.transformer.decoder.bbox_embed = self.bbox_embed
        if as_two_stage:
            self.transformer.decoder.class_embed = self.class_embed

    def learned_table(self) -> Tensor | None:
        """Return the learned queries [Q, D], or None if there are none."""
        return self.query_embedding.weight if hasattr(self, "query_embedding") else None
