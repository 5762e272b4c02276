"""Detectors whose queries are anchors: DAB-Deformable DETR and DN-Deformable DETR.

Anchors are 4-d boxes that each decoder layer refines; positions are made from them.

Shapes: B image, Q query, C channel, E channels of the learned content (C, or fewer with an
indicator).

Source: DAB-DETR, arXiv 2201.12329; DN-DETR, arXiv 2203.01305.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.functional import pad

from tokendetr.detector.consistency import check_stages
from tokendetr.detector.decoder import ScaledAnchorDecoder
from tokendetr.detector.denoising import DenoisingQueries
from tokendetr.detector.detector import (
    DeformableDetector,
    DetectorOutput,
    DetectorParts,
    DetectorSizes,
    PixelScale,
)
from tokendetr.detector.heads import predict
from tokendetr.detector.proposals import Proposals, max_class_score
from tokendetr.detector.pyramid import Pyramid
from tokendetr.detector.queries import ObjectQueries, learned_queries
from tokendetr.detector.transformer import EncodedTokens, TransformerOutput, TwoStageTransformer
from tokendetr.encoder import TokenEncoder


class AnchorEncoder(TokenEncoder):
    """Dense deformable encoder with the argument order of upstream's DAB and DN.

    Args: those of :class:`tokendetr.encoder.TokenEncoder`, ``operation_order`` before
        ``num_layers``.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        attn_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        operation_order: Sequence[str] = ("self_attn", "norm", "ffn", "norm"),
        num_layers: int = 6,
        post_norm: bool = False,
        num_feature_levels: int = 4,
        num_points: int = 4,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            attn_dropout=attn_dropout,
            ffn_dropout=ffn_dropout,
            operation_order=operation_order,
            num_layers=num_layers,
            post_norm=post_norm,
            num_feature_levels=num_feature_levels,
            num_points=num_points,
            use_checkpoint=use_checkpoint,
        )


class AnchorTransformer(TwoStageTransformer):
    """Encoder, learned anchors or the encoder's proposals as anchors, decoder.

    Args:
        encoder: encoder module; see ``tokendetr.encoder``.
        decoder: decoder module.
        as_two_stage: anchors and content come from the best encoder tokens.
        num_feature_levels: levels of the pyramid.
        two_stage_num_proposals: number of matching queries with two stages.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: ScaledAnchorDecoder,
        as_two_stage: bool = False,
        num_feature_levels: int = 4,
        two_stage_num_proposals: int = 300,
    ) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_feature_levels=num_feature_levels)
        self.as_two_stage = as_two_stage
        self.two_stage_num_proposals = two_stage_num_proposals
        if as_two_stage:
            self.add_proposal_projection()
        self.init_weights()

    def forward(
        self, pyramid: Pyramid, learned: ObjectQueries | None, denoising: DenoisingQueries | None
    ) -> TransformerOutput:
        """Encode the pyramid and decode.

        Args:
            pyramid: the features.
            learned: the learned queries, content and anchors; None with two stages.
            denoising: extra queries in front of the matching ones.
        """
        encoded = self.encode(pyramid)
        proposals, queries = None, learned
        if queries is None:
            proposals, queries = self._propose_anchors(encoded)
        return TransformerOutput(self.decode(encoded, queries, denoising), proposals)

    def _propose_anchors(self, encoded: EncodedTokens) -> tuple[Proposals, ObjectQueries]:
        proposals = self.propose(encoded, score=max_class_score, limit=self.two_stage_num_proposals)
        queries = ObjectQueries(
            content_BQC=proposals.select(proposals.tokens_BNC).detach(),
            reference_BQX=proposals.select(proposals.boxes_logit_BN4).detach().sigmoid(),
            valid_BQ=proposals.valid_BQ,
        )
        return proposals, queries


class AnchorDetector(DeformableDetector):
    """A detector with learned anchors, or with two stages; every layer refines the boxes.

    Args:
        parts: the modules; the transformer is an :class:`AnchorTransformer`.
        sizes: the numbers.
        pixels: how images are normalized.
        aux_loss: train every decoder layer, not only the last.
        as_two_stage: take queries from the encoder's proposals.
        with_indicator: the last content channel is an indicator, 0 for matching and 1 for denoising
            queries; learned content has one channel less.

    Raises:
        ValueError: ``as_two_stage`` differs from the transformer's.
    """

    tgt_embed: nn.Embedding  # this and the next one: without two stages
    refpoint_embed: nn.Embedding

    def __init__(
        self,
        parts: DetectorParts,
        sizes: DetectorSizes,
        pixels: PixelScale,
        *,
        aux_loss: bool,
        as_two_stage: bool,
        with_indicator: bool = False,
    ) -> None:
        check_stages(as_two_stage, parts.transformer)
        learned: dict[str, nn.Module] = {}
        if not as_two_stage:
            content_dim = sizes.embed_dim - int(with_indicator)
            learned["tgt_embed"] = nn.Embedding(sizes.num_queries, content_dim)
            learned["refpoint_embed"] = nn.Embedding(sizes.num_queries, 4)
        super().__init__(parts, sizes, pixels, query_embeddings=learned, aux_loss=aux_loss)
        self.as_two_stage = as_two_stage
        self.with_indicator = with_indicator
        self.add_heads(two_stage=as_two_stage, shared=False)
        if as_two_stage:
            self.transformer.decoder.class_embed = self.class_embed
        self.transformer.decoder.bbox_embed = self.bbox_embed

    def learned_anchors(self, batch_size: int) -> ObjectQueries:
        """Return the learned content, its indicator (if any) zero, and the learned anchors."""
        content_QC = pad(self.tgt_embed.weight, (0, int(self.with_indicator)))
        return ObjectQueries(
            content_BQC=learned_queries(content_QC, batch_size),
            reference_BQX=learned_queries(self.refpoint_embed.weight.sigmoid(), batch_size),
        )

    def decode(self, pyramid: Pyramid, denoising: DenoisingQueries | None) -> DetectorOutput:
        """Return predictions of all queries, denoising ones first, and of selected proposals."""
        learned = None if self.as_two_stage else self.learned_anchors(pyramid.features[0].shape[0])
        output = self.transformer(pyramid, learned, denoising)
        layers = predict(
            output.decoded, self.class_embed, self.bbox_embed, self.transformer.decoder.num_layers
        )
        selected = None if output.proposals is None else output.proposals.selected_outputs()
        return DetectorOutput(layers, selected)
