"""The deformable encoder: one loop for the dense encoder and for every sparse-token method.

Before each layer the loop asks a :class:`TokenPlan` for a token map, reduces the tokens, runs the
layer with all tokens as values, and restores the results. Without a sparsifier it is the encoder of
Deformable DETR and DINO.

Shapes: B image, N all tokens, K reduced tokens, C channel, L level.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from detrex.layers import FFN
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokendetr.encoder.bypass_pass import BypassPass, start_bypass
from tokendetr.encoder.decoder_attention import record_decoder_attention
from tokendetr.encoder.forward_context import current_pass, replay_contexts
from tokendetr.encoder.sparsifier import EncoderContext, TokenPlan, TokenSparsifier, ValuePolicy
from tokendetr.encoder.trace import Recorder
from tokendetr.errors import ConfigError
from tokendetr.layers.deformable_attention import MultiScaleDeformableAttention
from tokendetr.layers.encoder_layer import EncoderLayer
from tokendetr.tokens import LevelLayout, TokenMap

__all__ = [
    "EncoderContext",
    "EncoderLayer",
    "TokenEncoder",
    "TokenPlan",
    "TokenSparsifier",
    "ValuePolicy",
]


class TokenEncoder(nn.Module):
    """The deformable encoder, dense or with a sparsifier.

    Args:
        embed_dim: channels C.
        num_heads: attention heads.
        feedforward_dim: hidden channels of the feed-forward networks.
        attn_dropout: dropout after the attention.
        ffn_dropout: dropout inside the feed-forward networks.
        num_layers: number of layers; 0 returns the input features.
        post_norm: add a LayerNorm after the last layer.
        num_feature_levels: levels L.
        num_points: sampled points per head and level.
        operation_order: order inside a layer, see :class:`EncoderLayer`.
        use_checkpoint: recompute layers in the backward pass instead of storing their activations.
        sparsifier: chooses the tokens of each layer; None: all.

    Source: Deformable DETR, arXiv 2010.04159; arguments and parameter names of detrex's encoders.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        attn_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        num_layers: int = 6,
        post_norm: bool = False,
        num_feature_levels: int = 4,
        num_points: int = 4,
        operation_order: Sequence[str] = ("self_attn", "norm", "ffn", "norm"),
        use_checkpoint: bool = False,
        sparsifier: TokenSparsifier | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 0:
            raise ValueError(f"num_layers must be at least 0, got {num_layers}")
        if sparsifier is not None:
            if not isinstance(sparsifier, TokenSparsifier):
                raise ConfigError(
                    f"sparsifier is a {type(sparsifier).__name__}, no TokenSparsifier"
                )
            sparsifier.check(num_layers, num_feature_levels)
        order = tuple(operation_order)

        def make_layer() -> EncoderLayer:
            attention = MultiScaleDeformableAttention(
                embed_dim=embed_dim,
                num_heads=num_heads,
                num_levels=num_feature_levels,
                num_points=num_points,
                dropout=attn_dropout,
                batch_first=True,
            )
            ffns = [
                FFN(
                    embed_dim=embed_dim,
                    feedforward_dim=feedforward_dim,
                    output_dim=embed_dim,
                    num_fcs=2,
                    ffn_drop=ffn_dropout,
                )
                for name in order
                if name == "ffn"
            ]
            return EncoderLayer(attention=attention, ffns=ffns, operation_order=order)

        self.layers = nn.ModuleList(make_layer() for _ in range(num_layers))
        self.num_layers = num_layers
        self.embed_dim = embed_dim
        self.pre_norm = order[0] == "norm"
        self.use_checkpoint = use_checkpoint
        self.post_norm_layer = nn.LayerNorm(embed_dim) if post_norm else None
        self.sparsifier = sparsifier
        self._check_bypass(num_feature_levels)

    def _check_bypass(self, num_levels: int) -> None:
        bypass = None if self.sparsifier is None else self.sparsifier.bypass
        if bypass is None:
            return
        for name, value in (
            ("embed_dim", self.embed_dim),
            ("num_layers", self.num_layers),
            ("num_levels", num_levels),
        ):
            if (found := getattr(bypass, name, None)) != value:
                raise ValueError(f"the bypass has {name}={found}, the encoder {value}")

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_masks: object = None,
        query_key_padding_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        spatial_shapes: Tensor | None = None,
        reference_points: Tensor | None = None,
        level_start_index: Tensor | None = None,
        valid_ratios: Tensor | None = None,
        layout: LevelLayout | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Encode a batch of flattened feature pyramids (the call of upstream's transformers).

        Args:
            query: features [B, N, C] of all levels, finest first, row by row.
            key: unused, as in upstream (the encoder attends to its own tokens).
            value: unused.
            query_pos: positions [B, N, C], or [1, N, C] for all images.
            key_pos: unused.
            attn_masks: unused.
            query_key_padding_mask: bool [B, N], True = padding.
            key_padding_mask: the same under mmdetection's name; unused if both are given.
            spatial_shapes: long [L, 2], (height, width) of the levels.
            reference_points: [B, N, L, 2], or [1, N, L, 2]; None: each token's center.
            level_start_index: unused; it follows from the shapes.
            valid_ratios: [B, L, 2], real part of each level's (width, height); None: that of the
                padding mask.
            layout: the same geometry with Python sizes, which saves a synchronization with the
                device; replaces masks, shapes and ratios.
            **kwargs: unused; upstream's transformers also pass their decoder's arguments.

        Returns:
            The memory [B, N, C], in the order of ``query``.

        Raises:
            ValueError: neither ``layout`` nor ``spatial_shapes`` is given, or they do not fit
                the tokens.
        """
        if query_key_padding_mask is None:
            query_key_padding_mask = key_padding_mask
        if layout is None:
            if spatial_shapes is None:
                raise ValueError("the encoder needs layout or spatial_shapes")
            layout = LevelLayout.from_upstream(
                spatial_shapes=spatial_shapes,
                valid_ratios=valid_ratios,
                query_key_padding_mask=query_key_padding_mask,
                like_BNC=query,
            )
        if layout.num_tokens != query.shape[1] or layout.batch_size != query.shape[0]:
            raise ValueError(
                f"the layout is of {layout.batch_size} images of {layout.num_tokens} tokens, "
                f"the features have shape {list(query.shape)}"
            )
        if query_pos is not None:
            query_pos = query_pos.expand_as(query)
            if not torch.is_grad_enabled():
                query_pos = query_pos.to(query.dtype)  # once, not in the sum of every layer
        if reference_points is None:
            reference_points = layout.reference_points_BNL2().to(query.dtype)
        elif reference_points.shape[0] == 1:  # len() would fix the batch of an exported program
            reference_points = reference_points.expand(query.shape[0], -1, -1, -1)
        context = self._begin(layout, query, query_pos, reference_points)
        if self.sparsifier is None:
            return self._encode(context, TokenPlan(context))
        plan = self.sparsifier.plan(context)
        bypass = start_bypass(self.sparsifier.bypass, layout, query)
        return self._encode(context, plan, self.sparsifier.value_policy, bypass)

    def _begin(
        self,
        layout: LevelLayout,
        memory_BNC: Tensor,
        query_pos_BNC: Tensor | None,
        reference_points_BNL2: Tensor,
    ) -> EncoderContext:
        """Return the context of a pass, whose recording begins."""
        forward = current_pass()
        trains = forward.model is not None and forward.model.training
        context = EncoderContext(
            layout=layout,
            memory_BNC=memory_BNC,
            query_pos_BNC=query_pos_BNC,
            reference_points_BNL2=reference_points_BNL2,
            num_layers=self.num_layers,
            run_dense=lambda: self.run_dense(context),
            detector=forward.detector,
            losses=forward.losses if trains else None,
            recorder=forward.recorder,
            batched_inputs=forward.batched_inputs,
        )
        forward.recorder.begin_forward(layout)
        record_decoder_attention(forward, layout)
        return context

    def run_dense(self, context: EncoderContext) -> Tensor:
        """Run all layers on all tokens of a pass, without gradients, and return the memory.

        Nothing is recorded. The context may come from another encoder's pass.
        """
        silent = replace(context, recorder=Recorder())
        with torch.no_grad():
            return self._encode(silent, TokenPlan(silent))

    def _encode(
        self,
        context: EncoderContext,
        plan: TokenPlan,
        value_policy: ValuePolicy = "updated",
        bypass: BypassPass | None = None,
    ) -> Tensor:
        """Run all layers by a plan; the bypass maps the tokens that a layer skips."""
        bypass = bypass or BypassPass()
        layout, pos_BNC, memory_BNC = context.layout, context.query_pos_BNC, context.memory_BNC
        padding_BN = layout.padding_BN if layout.may_have_padding else None
        if not self.num_layers and pos_BNC is not None:
            # DistributedDataParallel needs the level embeddings in the graph of every pass.
            memory_BNC = memory_BNC + 0.0 * pos_BNC
        previous: TokenMap | None = None
        owned = False  # nothing but this loop uses the memory
        for index, layer in enumerate(self.layers):
            token_map = plan.token_map(index, memory_BNC)
            context.recorder.record_layer(token_map)
            memory_BNC = bypass.begin_layer(index, token_map, memory_BNC)
            if token_map is not previous:
                # A reduced token attends from its anchor's position and reference point, unless the
                # map's select() averages its members'.
                tokens_BKC, previous = token_map.reduce(memory_BNC), token_map
                pos_BKC = None if pos_BNC is None else token_map.select(pos_BNC)
                reference_BKLX = token_map.select(context.reference_points_BNL2)
            tokens_BKC = plan.before_attention(index, tokens_BKC, token_map)
            if token_map.num_tokens:  # keep ratio 0: a layer without queries updates nothing
                value_BNC, projected_BNC = context.memory_BNC, None
                if value_policy == "updated":
                    value_BNC, projected_BNC = self._updated_values(index, memory_BNC, bypass)
                tokens_BKC = self._run_layer(
                    layer,
                    tokens_BKC,
                    None if value_BNC is tokens_BKC else value_BNC,
                    pos_BKC,
                    reference_BKLX,
                    padding_BN,
                    layout.level_shapes,
                    projected_BNC,
                    plan.feed_forward(index),
                )
            restore = token_map.restore_onto if owned else token_map.restore
            memory_BNC = restore(tokens_BKC, memory_BNC)
            owned = memory_BNC is not tokens_BKC and not torch.is_grad_enabled()
            memory_BNC = bypass.end_layer(index, memory_BNC)
            plan.after_layer(index, tokens_BKC, token_map)
        memory_BNC = bypass.finish(memory_BNC)
        if self.post_norm_layer is not None:
            memory_BNC = self.post_norm_layer(memory_BNC)
        return plan.finalize(memory_BNC)

    def _updated_values(
        self, index: int, memory_BNC: Tensor, bypass: BypassPass
    ) -> tuple[Tensor, Tensor | None]:
        """Return the tokens that a layer's queries sample, and their projection if it is folded.

        It is not for a layer that is wrapped in another module.
        """
        projection = getattr(self.layers[index], "value_projection", None)
        if projection is None:
            return bypass.values(index, memory_BNC), None
        return memory_BNC, bypass.projected_values(index, memory_BNC, projection)

    def _run_layer(self, layer: nn.Module, *arguments: object) -> Tensor:
        """Run a layer on the arguments of its ``forward``, with activation checkpointing if set."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False, context_fn=replay_contexts)
        return layer(*arguments)
