"""Transformer of all deformable detectors: flatten, encode, (propose,) decode.

Shapes: B image, N all tokens, L level, Q query, C channel, V class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokendetr.detector.decoder import DeformableDecoder
from tokendetr.detector.denoising import DenoisingQueries
from tokendetr.detector.interfaces import check_module
from tokendetr.detector.positions import proposal_embedding
from tokendetr.detector.proposals import Proposals, propose
from tokendetr.detector.pyramid import Pyramid, flatten_levels
from tokendetr.detector.queries import DecodedQueries, ObjectQueries
from tokendetr.errors import ConfigError
from tokendetr.tokens import LevelLayout

_ENCODER_CALL = (
    *("query", "key", "value", "query_pos", "query_key_padding_mask", "spatial_shapes"),
    *("reference_points", "level_start_index", "valid_ratios", "layout"),
)
_DECODER_CALL = ("queries", "memory_BNC", "layout")


@dataclass(frozen=True)
class EncodedTokens:
    """The encoder's output: memory_BNC with every level's grid intact, and its geometry."""

    memory_BNC: Tensor
    layout: LevelLayout


@dataclass(frozen=True)
class TransformerOutput:
    """Output of a detector's transformer, input of its heads.

    Attributes:
        decoded: states and references of the decoder.
        proposals: of the two-stage head; None without two stages.
    """

    decoded: DecodedQueries
    proposals: Proposals | None = None


class DeformableTransformer(nn.Module):
    """Encoder, decoder and level embeddings. Subclasses add their query initialization.

    Args:
        encoder: any module with the encoder contract of ``tokendetr.encoder``.
        decoder: a :class:`DeformableDecoder`.
        num_feature_levels: levels L of the pyramid.

    Raises:
        ConfigError: encoder or decoder is no such module.
    """

    decoder: DeformableDecoder

    def __init__(
        self, *, encoder: nn.Module, decoder: DeformableDecoder, num_feature_levels: int
    ) -> None:
        super().__init__()
        key = "model.transformer"
        check_module(f"{key}.encoder", encoder, keywords=_ENCODER_CALL, numbers=["embed_dim"])
        check_module(f"{key}.decoder", decoder, *_DECODER_CALL, numbers=["num_layers"])
        self.encoder = encoder
        self.decoder = decoder
        self.num_feature_levels = num_feature_levels
        self.embed_dim: int = encoder.embed_dim  # type: ignore[assignment]  # the encoder contract
        self.level_embeds = nn.Parameter(torch.empty(num_feature_levels, self.embed_dim))

    def init_weights(self) -> None:
        """Initialize every matrix by Xavier, then modules that have their own ``init_weights``."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            init_weights = getattr(module, "init_weights", None)
            if module is not self and init_weights is not None:
                init_weights()
        nn.init.normal_(self.level_embeds)

    def encode(self, pyramid: Pyramid) -> EncodedTokens:
        """Run the encoder on the flattened pyramid.

        Raises:
            ConfigError: the pyramid has another number of levels than the transformer.
        """
        layout = pyramid.layout
        if len(layout.level_shapes) != self.num_feature_levels:
            raise ConfigError(
                f"the neck gives {len(layout.level_shapes)} levels, but the transformer was built "
                f"for num_feature_levels={self.num_feature_levels}; set neck.num_outs to match"
            )
        positions = [
            position + embedding[None, :, None, None]
            for position, embedding in zip(pyramid.positions, self.level_embeds, strict=True)
        ]
        tokens_BNC = flatten_levels(pyramid.features)
        memory_BNC = self.encoder(
            query=tokens_BNC,
            key=None,
            value=None,
            query_pos=flatten_levels(positions),
            query_key_padding_mask=layout.padding_BN,
            spatial_shapes=layout.spatial_shapes(tokens_BNC.device),
            reference_points=layout.reference_points_BNL2(),
            level_start_index=layout.level_start_index(tokens_BNC.device),
            valid_ratios=layout.valid_ratios_BL2,
            layout=layout,
        )
        return EncodedTokens(memory_BNC, layout)

    def decode(
        self, encoded: EncodedTokens, queries: ObjectQueries, denoising: DenoisingQueries | None
    ) -> DecodedQueries:
        """Run the decoder, with the denoising queries (if any) in front of the matching ones."""
        blocked_QQ = None
        if denoising is not None:
            blocked_QQ = denoising.attention_mask(queries.num_queries)
            queries = queries.prepend(denoising.content_BDC, denoising.reference_BD4)
        return self.decoder(queries, encoded.memory_BNC, encoded.layout, blocked_QQ=blocked_QQ)


class TwoStageTransformer(DeformableTransformer):
    """Adds the projection that turns encoder tokens into proposals.

    The decoder carries the detector's heads; the last of them, after those of its layers, score
    proposals.
    """

    def add_proposal_projection(self) -> None:
        """Register ``enc_output`` and ``enc_output_norm`` at the place of their state-dict keys."""
        self.enc_output = nn.Linear(self.embed_dim, self.embed_dim)
        self.enc_output_norm = nn.LayerNorm(self.embed_dim)

    def add_proposal_positions(self, *, with_content: bool = True) -> None:
        """Register ``pos_trans`` and ``pos_trans_norm``, which make queries from proposals.

        Args:
            with_content: make positions and content; otherwise positions alone.
        """
        width = 2 * self.embed_dim if with_content else self.embed_dim
        self.pos_trans = nn.Linear(2 * self.embed_dim, width)
        self.pos_trans_norm = nn.LayerNorm(width)

    def proposal_positions(self, boxes_BQ4: Tensor) -> tuple[Tensor, Tensor]:
        """Return position and content embeddings [B, Q, C] of boxes cxcywh in 0..1.

        The content has 0 channels if it was left out.
        """
        embedding_BQD = proposal_embedding(boxes_BQ4, self.embed_dim)
        queries_BQD = self.pos_trans_norm(self.pos_trans(embedding_BQD))
        return queries_BQD[..., : self.embed_dim], queries_BQD[..., self.embed_dim :]

    def propose(
        self, encoded: EncodedTokens, *, score: Callable[[Tensor], Tensor], limit: int
    ) -> Proposals:
        """Select the ``limit`` best tokens by ``score`` of their class logits.

        In training, padding competes with the border tokens that propose no box either, as upstream
        trains; in evaluation it is skipped, so that an image's result does not depend on its batch.
        """
        if self.decoder.class_embed is None or self.decoder.bbox_embed is None:
            raise RuntimeError("two-stage selection needs heads: build the transformer's detector")
        return propose(
            encoded.memory_BNC,
            encoded.layout,
            project=lambda tokens_BNC: self.enc_output_norm(self.enc_output(tokens_BNC)),
            class_head=self.decoder.class_embed[-1],
            box_head=self.decoder.bbox_embed[-1],
            score=score,
            limit=limit,
            skip_padding=not self.training,
        )
