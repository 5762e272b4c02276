"""DINO's transformer: learned content, top-k boxes as anchors, look-forward-twice refinement.

Shapes: B image, Q query, C channel.

Source: DINO, arXiv 2203.03605, sections 3.4 and 3.5; names and arguments of detrex
``projects/dino``.
"""

from __future__ import annotations

from torch import Tensor, nn

from tokendetr.detector import (
    AnchorDecoder,
    DenoisingQueries,
    ObjectQueries,
    Pyramid,
    TransformerOutput,
    TwoStageTransformer,
    learned_queries,
    max_class_score,
)
from tokendetr.detector.refinement import REFERENCE_EDGE
from tokendetr.encoder import TokenEncoder


class DINOTransformerEncoder(TokenEncoder):
    """Dense deformable encoder under upstream's name and arguments."""


class DINOTransformerDecoder(AnchorDecoder):
    """Anchor decoder whose states are normalized before the heads read them.

    Args: as upstream; see :class:`tokendetr.detector.DeformableDecoder`.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        attn_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        num_layers: int = 6,
        return_intermediate: bool = True,
        num_feature_levels: int = 4,
        look_forward_twice: bool = True,
        use_checkpoint: bool = True,
        reference_edge: float = REFERENCE_EDGE,
        num_points: int = 4,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            attn_dropout=attn_dropout,
            ffn_dropout=ffn_dropout,
            num_layers=num_layers,
            return_intermediate=return_intermediate,
            num_feature_levels=num_feature_levels,
            look_forward_twice=look_forward_twice,
            use_checkpoint=use_checkpoint,
            reference_edge=reference_edge,
            num_points=num_points,
        )
        self.norm = nn.LayerNorm(embed_dim)

    def output_state(self, state_BQC: Tensor) -> Tensor:
        """Return the normalized state."""
        return self.norm(state_BQC)


class DINOTransformer(TwoStageTransformer):
    """Encoder, two-stage selection of anchors, decoder.

    Args:
        encoder: encoder module; see ``tokendetr.encoder``.
        decoder: decoder module.
        num_feature_levels: levels of the pyramid.
        two_stage_num_proposals: number of matching queries Q.
        learnt_init_query: take content from a learned table; otherwise from the selected tokens.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: DINOTransformerDecoder,
        num_feature_levels: int = 4,
        two_stage_num_proposals: int = 900,
        learnt_init_query: bool = True,
    ) -> None:
        super().__init__(encoder=encoder, decoder=decoder, num_feature_levels=num_feature_levels)
        self.two_stage_num_proposals = two_stage_num_proposals
        self.learnt_init_query = learnt_init_query
        if learnt_init_query:
            self.tgt_embed = nn.Embedding(two_stage_num_proposals, self.embed_dim)
        self.add_proposal_projection()
        self.init_weights()

    def forward(self, pyramid: Pyramid, denoising: DenoisingQueries | None) -> TransformerOutput:
        """Encode the pyramid and decode denoising queries, if given, and matching ones."""
        encoded = self.encode(pyramid)
        proposals = self.propose(encoded, score=max_class_score, limit=self.two_stage_num_proposals)
        batch_size, num_matching = proposals.indices_BQ.shape
        if self.learnt_init_query:
            content_BQC = learned_queries(self.tgt_embed.weight[:num_matching], batch_size)
        else:
            content_BQC = proposals.select(proposals.tokens_BNC).detach()
        anchors_BQ4 = proposals.select(proposals.boxes_logit_BN4).detach().sigmoid()
        queries = ObjectQueries(content_BQC, anchors_BQ4, valid_BQ=proposals.valid_BQ)
        return TransformerOutput(self.decode(encoded, queries, denoising), proposals)
