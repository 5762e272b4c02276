"""Decoder loop and decoder layer of all deformable detectors.

Detectors differ in two hooks: how a query's position embedding is made, and whether references are
refined between layers.

Shapes: B image, N all tokens, L level, Q query, C channel, X = 2 (point) or 4 (box).
"""

from __future__ import annotations

from typing import Any

import torch
from detrex.layers import (
    FFN,
    MLP,
    BaseTransformerLayer,
    MultiheadAttention,
    TransformerLayerSequence,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokendetr.detector.positions import anchor_embedding
from tokendetr.detector.queries import DecodedQueries, ObjectQueries
from tokendetr.detector.refinement import REFERENCE_EDGE, refine_boxes
from tokendetr.layers.deformable_attention import MultiScaleDeformableAttention
from tokendetr.tokens import LevelLayout


def decoder_layer(
    *,
    embed_dim: int,
    num_heads: int,
    feedforward_dim: int,
    attn_dropout: float,
    ffn_dropout: float,
    num_feature_levels: int,
    num_points: int,
) -> nn.Module:
    """Build a post-norm layer: self-attention, deformable attention over the tokens, FFN."""
    self_attention = MultiheadAttention(
        embed_dim=embed_dim, num_heads=num_heads, attn_drop=attn_dropout, batch_first=True
    )
    cross_attention = MultiScaleDeformableAttention(
        embed_dim=embed_dim,
        num_heads=num_heads,
        dropout=attn_dropout,
        batch_first=True,
        num_levels=num_feature_levels,
        num_points=num_points,
    )
    return BaseTransformerLayer(
        attn=[self_attention, cross_attention],
        ffn=FFN(
            embed_dim=embed_dim,
            feedforward_dim=feedforward_dim,
            output_dim=embed_dim,
            ffn_drop=ffn_dropout,
        ),
        norm=nn.LayerNorm(embed_dim),
        operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    )


class DeformableDecoder(TransformerLayerSequence):
    """Decoder with fixed query positions (Deformable DETR, H-DETR).

    References are refined when a detector has attached its box heads as ``bbox_embed``.

    Args:
        embed_dim: width C.
        num_heads: attention heads.
        feedforward_dim: hidden width of the feed-forward blocks.
        attn_dropout: dropout after attention, 0..1.
        ffn_dropout: dropout in the feed-forward blocks, 0..1.
        num_layers: decoder layers.
        return_intermediate: return every layer's state, not only the last.
        num_feature_levels: levels L of the token pyramid.
        look_forward_twice: let the gradient of a layer's box loss reach the layer before it (DINO,
            section 3.5); None: the class's default.
        use_checkpoint: recompute layers in the backward pass instead of keeping their activations.
        reference_edge: references are clamped to this distance from 0 and 1 before their logit is
            taken: 1e-3 in detrex, 1e-5 in the code of Deformable DETR and Sparse DETR.
        num_points: sampled points per head and level of the attention over the tokens.
    """

    looks_forward_twice = False  # the default of look_forward_twice
    num_layers: int
    bbox_embed: nn.ModuleList | None
    class_embed: nn.ModuleList | None

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
        look_forward_twice: bool | None = None,
        use_checkpoint: bool = False,
        reference_edge: float = REFERENCE_EDGE,
        num_points: int = 4,
    ) -> None:
        layer = decoder_layer(
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            attn_dropout=attn_dropout,
            ffn_dropout=ffn_dropout,
            num_feature_levels=num_feature_levels,
            num_points=num_points,
        )
        super().__init__(transformer_layers=layer, num_layers=num_layers)
        self.embed_dim = embed_dim
        self.return_intermediate = return_intermediate
        self.look_forward_twice = (
            self.looks_forward_twice if look_forward_twice is None else look_forward_twice
        )
        self.use_checkpoint = use_checkpoint
        self.reference_edge = reference_edge
        self.bbox_embed = None
        self.class_embed = None
        self.add_position_heads()

    def add_position_heads(self) -> None:
        """Register the modules of :meth:`query_position` after the layers; none here."""

    def query_position(
        self, queries: ObjectQueries, state_BQC: Tensor, anchor_BQX: Tensor, layer_index: int
    ) -> Tensor | None:
        """Return the queries' position embedding [B, Q, C] for one layer; here the fixed one.

        Args:
            queries: the decoder's input.
            state_BQC: the queries' state before the layer.
            anchor_BQX: their current references: in training relative to the padded finest level,
                as upstream trains; in evaluation relative to the image, independent of padding.
            layer_index: index of the layer, from 0.
        """
        return queries.position_BQC

    def output_state(self, state_BQC: Tensor) -> Tensor:
        """Return what the heads read of a layer's state; here the state itself."""
        return state_BQC

    def forward(
        self,
        queries: ObjectQueries,
        memory_BNC: Tensor,
        layout: LevelLayout,
        *,
        blocked_QQ: Tensor | None = None,
    ) -> DecodedQueries:
        """Run the layers.

        Args:
            queries: the object queries, extra (denoising) ones included.
            memory_BNC: the encoder's output.
            layout: its levels and masks.
            blocked_QQ: bool self-attention mask, True where the row must not attend to the column.
        """
        context = {
            "attn_masks": [blocked_QQ, None],
            "query_key_padding_mask": None if queries.valid_BQ is None else ~queries.valid_BQ,
            "key_padding_mask": layout.padding_BN if layout.may_have_padding else None,
            "spatial_shapes": layout.spatial_shapes(memory_BNC.device),
            "level_start_index": layout.level_start_index(memory_BNC.device),
            "level_shapes": layout.level_shapes,
        }
        ratios_BL4 = layout.valid_ratios_BL2.repeat(1, 1, 2).to(queries.reference_BQX)
        state_BQC, reference_BQX = queries.content_BQC, queries.reference_BQX
        states, references = [], []
        head_reference_BQX = reference_BQX
        for index, layer in enumerate(self.layers):
            scaled_BQLX = (
                reference_BQX[:, :, None] * ratios_BL4[:, None, :, : reference_BQX.shape[-1]]
            )
            anchor_BQX = scaled_BQLX[:, :, 0] if self.training else reference_BQX
            position_BQC = self.query_position(queries, state_BQC, anchor_BQX, index)
            state_BQC = self._run_layer(
                layer, state_BQC, memory_BNC, position_BQC, scaled_BQLX, context
            )
            if self.return_intermediate or index == self.num_layers - 1:
                states.append(self.output_state(state_BQC))
                references.append(head_reference_BQX)
            if self.bbox_embed is not None:
                offsets_BQ4 = self.bbox_embed[index](state_BQC)
                refined_BQ4 = refine_boxes(offsets_BQ4, reference_BQX, edge=self.reference_edge)
                reference_BQX = refined_BQ4.detach()
                head_reference_BQX = refined_BQ4 if self.look_forward_twice else reference_BQX
        return DecodedQueries(states, references, queries.valid_BQ, self.reference_edge)

    def _run_layer(
        self,
        layer: nn.Module,
        state_BQC: Tensor,
        memory_BNC: Tensor,
        position_BQC: Tensor | None,
        reference_BQLX: Tensor,
        context: dict[str, Any],
    ) -> Tensor:
        def run(state_BQC: Tensor, memory_BNC: Tensor) -> Tensor:
            return layer(
                state_BQC,
                None,
                memory_BNC,
                query_pos=position_BQC,
                reference_points=reference_BQLX,
                **context,
            )

        if self.use_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(run, state_BQC, memory_BNC, use_reentrant=False)
        return run(state_BQC, memory_BNC)


class AnchorDecoder(DeformableDecoder):
    """Decoder whose query positions follow the refined anchors: MLP(sine(anchor)), as in DAB-DETR.

    Args: those of :class:`DeformableDecoder`.
    """

    def add_position_heads(self) -> None:
        """Register ``ref_point_head``."""
        self.ref_point_head = MLP(2 * self.embed_dim, self.embed_dim, self.embed_dim, 2)

    def query_position(
        self, queries: ObjectQueries, state_BQC: Tensor, anchor_BQX: Tensor, layer_index: int
    ) -> Tensor:
        """Return the position embedding of the current anchors."""
        return self.ref_point_head(anchor_embedding(anchor_BQX, self.embed_dim))


class ScaledAnchorDecoder(AnchorDecoder):
    """Anchor decoder that lets a query's state scale its position after the first layer.

    Source: Conditional DETR, section 3.2, as adopted by DAB-DETR.

    Args: those of :class:`DeformableDecoder`.
    """

    def add_position_heads(self) -> None:
        """Register ``query_scale`` and ``ref_point_head``."""
        self.query_scale = MLP(self.embed_dim, self.embed_dim, self.embed_dim, 2)
        super().add_position_heads()

    def query_position(
        self, queries: ObjectQueries, state_BQC: Tensor, anchor_BQX: Tensor, layer_index: int
    ) -> Tensor:
        """Return the position embedding of the current anchors, scaled per channel."""
        position_BQC = super().query_position(queries, state_BQC, anchor_BQX, layer_index)
        return position_BQC if layer_index == 0 else self.query_scale(state_BQC) * position_BQC
