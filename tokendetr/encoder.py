"""The deformable encoder: one loop for dense encoders and for every method that works on fewer
tokens.

Before each layer the loop asks a :class:`TokenPlan` for a token map, reduces the tokens, runs the
layer with whole grids as values, and puts the results back. Without a sparsifier it is the encoder
of Deformable DETR and DINO.
Shapes: B image, N all tokens, K reduced tokens, C channel, L level.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from detrex.layers import FFN
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokendetr import trace
from tokendetr.attention import MultiScaleDeformableAttention
from tokendetr.decoder_attention import record_decoder_attention
from tokendetr.supervision import replay_contexts
from tokendetr.tokens import Identity, LevelLayout, TokenMap

ValuePolicy = Literal["updated", "initial"]
VALUE_POLICIES = ("updated", "initial")
ROWS_AT_ONCE = 512
"""Tokens that pass the feed-forward network together: at 2048 hidden channels 4 MiB in float32."""


@dataclass(frozen=True)
class EncoderContext:
    """What a sparsifier may know when it plans one forward pass.

    Attributes:
        layout: geometry and padding of the batch.
        memory_BNC: the tokens that enter the encoder.
        query_pos_BNC: their positions, or None.
        reference_points_BNL2: their normalised reference points in every level.
        num_layers: number of encoder layers.
        run_dense: runs all layers on all tokens without gradients and returns the memory [B, N, C].
    """

    layout: LevelLayout
    memory_BNC: Tensor
    query_pos_BNC: Tensor | None
    reference_points_BNL2: Tensor
    num_layers: int
    run_dense: Callable[[], Tensor]


class TokenPlan:
    """What one forward pass does with its tokens; this base class keeps all of them.

    Everything that lives for one forward pass lives here, so sparsifiers stay stateless.

    Args:
        context: the forward pass.
    """

    def __init__(self, context: EncoderContext) -> None:
        self.context = context
        self._identity = Identity(
            num_tokens=context.layout.num_tokens, valid_BN=context.layout.valid_BN
        )

    def token_map(self, layer: int, memory_BNC: Tensor) -> TokenMap:
        """Return the map of a layer.

        Returning the same object as for the layer before means: the reduced tokens carry on as they
        are, instead of being reduced again from the memory.

        Args:
            layer: index of the layer, from 0.
            memory_BNC: all tokens as they are before the layer.
        """
        return self._identity

    def before_attention(self, layer: int, tokens_BKC: Tensor, token_map: TokenMap) -> Tensor:
        """Return the reduced tokens after a block of the method's own (unchanged here)."""
        return tokens_BKC

    def after_layer(self, layer: int, tokens_BKC: Tensor, token_map: TokenMap) -> None:
        """Look at a layer's results (for auxiliary heads); nothing here."""

    def finish(self, memory_BNC: Tensor) -> Tensor:
        """Return the encoder's output; losses are added to ``supervision.current()`` here."""
        return memory_BNC


class TokenSparsifier(nn.Module, ABC):
    """A method that decides which tokens the encoder's layers work on.

    Args:
        value_policy: whether the attention's values are the memory as updated by the layers so far
            ("updated") or the features that entered the encoder ("initial").

    Raises:
        ValueError: for another policy.
    """

    def __init__(self, *, value_policy: ValuePolicy = "updated") -> None:
        super().__init__()
        if value_policy not in VALUE_POLICIES:
            raise ValueError(f"value_policy must be one of {VALUE_POLICIES}, got {value_policy!r}")
        self.value_policy = value_policy

    @abstractmethod
    def plan(self, context: EncoderContext) -> TokenPlan:
        """Return the plan of one forward pass."""

    def convert_weights(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's weights (of the whole model) under the names that they have here.

        A method whose published checkpoints have other names recognises and renames them; others
        are returned as they are.
        """
        return dict(weights)


class EncoderLayer(nn.Module):
    """One encoder layer with the parameter names of detrex's ``BaseTransformerLayer``.

    Args:
        attention: the deformable attention.
        ffn: feed-forward network, copied for each "ffn" of the order by the caller.
        operation_order: "self_attn" once, "ffn" after it, "norm" anywhere; pre-norm where "norm"
            comes first.

    Raises:
        ValueError: for another order.
    """

    def __init__(
        self,
        *,
        attention: MultiScaleDeformableAttention,
        ffns: Sequence[nn.Module],
        operation_order: Sequence[str],
    ) -> None:
        super().__init__()
        order = tuple(operation_order)
        attends = [i for i, name in enumerate(order) if name == "self_attn"]
        if (
            set(order) - {"self_attn", "norm", "ffn"}
            or len(attends) != 1
            or "ffn" in order[: attends[0]]
        ):
            raise ValueError(
                "operation_order must hold 'self_attn' once, 'ffn' only after it and 'norm', "
                f"got {order}"
            )
        if len(ffns) != order.count("ffn"):
            raise ValueError(
                f"{order} needs {order.count('ffn')} feed-forward networks, got {len(ffns)}"
            )
        self.operation_order = order
        self.pre_norm = order[0] == "norm"
        self.embed_dim = attention.embed_dim
        self.attentions = nn.ModuleList([attention])
        self.ffns = nn.ModuleList(ffns)
        self.norms = nn.ModuleList(
            nn.LayerNorm(attention.embed_dim) for _ in range(order.count("norm"))
        )

    def forward(
        self,
        tokens_BKC: Tensor,
        value_BNC: Tensor | None,
        query_pos_BKC: Tensor | None,
        reference_points_BKLX: Tensor,
        padding_BN: Tensor | None,
        level_shapes: tuple[tuple[int, int], ...],
    ) -> Tensor:
        """Update tokens from whole grids.

        Args:
            tokens_BKC: the tokens to update.
            value_BNC: all tokens, or None where ``tokens_BKC`` are all tokens.
            query_pos_BKC: positions of the tokens to update.
            reference_points_BKLX: reference points of the tokens to update.
            padding_BN: bool, True = padding among the values.
            level_shapes: (height, width) of each level.

        Returns:
            The updated tokens [B, K, C].
        """
        attention_at = self.operation_order.index("self_attn")
        query, value = tokens_BKC, value_BNC
        for norm in self.norms[:attention_at]:
            query = norm(query)
            value = None if value is None else norm(value)
        attended_BKC = self.attentions[0](
            query,
            value=value,
            identity=tokens_BKC if self.pre_norm else None,
            query_pos=query_pos_BKC,
            key_padding_mask=padding_BN,
            reference_points=reference_points_BKLX,
            level_shapes=level_shapes,
        )
        if self._works_in_blocks(attended_BKC):
            for rows in attended_BKC.flatten(0, 1)[None].split(ROWS_AT_ONCE, dim=1):
                rows.copy_(self._after_attention(rows))
            return attended_BKC
        return self._after_attention(attended_BKC)

    def _works_in_blocks(self, attended_BKC: Tensor) -> bool:
        """Return whether blocks of tokens go through the rest of the layer one after the other.

        Tokens do not see each other there, so it changes nothing but where the wide hidden
        activations live: in the cache instead of in fresh memory.
        """
        return (
            attended_BKC.device.type == "cpu"
            and attended_BKC.is_contiguous()
            and not self.training
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")  # may change the type of the tokens
            and not torch.compiler.is_compiling()
        )

    def _after_attention(self, attended_BKC: Tensor) -> Tensor:
        """Run the norms and feed-forward networks that follow the attention."""
        attention_at = self.operation_order.index("self_attn")
        norms, ffns = iter(self.norms[attention_at:]), iter(self.ffns)
        tokens_BKC = attended_BKC
        for name in self.operation_order[attention_at + 1 :]:
            if name == "ffn":
                tokens_BKC = next(ffns)(tokens_BKC, attended_BKC if self.pre_norm else None)
            else:
                tokens_BKC = next(norms)(tokens_BKC)
        return tokens_BKC


class TokenEncoder(nn.Module):
    """The deformable encoder, dense or with a sparsifier.

    Args:
        embed_dim: channels C.
        num_heads: attention heads.
        feedforward_dim: hidden channels of the feed-forward networks.
        attn_dropout: dropout after the attention.
        ffn_dropout: dropout inside the feed-forward networks.
        num_layers: number of layers.
        post_norm: whether a LayerNorm follows the last layer.
        num_feature_levels: levels L.
        num_points: sampled points per head and level.
        operation_order: order inside a layer, see :class:`EncoderLayer`.
        use_checkpoint: recompute layers in the backward pass instead of storing their activations.
        sparsifier: decides which tokens the layers work on; None works on all.

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
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
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
            value: unused, likewise.
            query_pos: positions [B, N, C].
            key_pos: unused, likewise.
            attn_masks: unused, likewise.
            query_key_padding_mask: bool [B, N], True = padding.
            key_padding_mask: unused, likewise.
            spatial_shapes: long [L, 2], (height, width) of the levels.
            reference_points: [B, N, L, 2]; each token's own centre where None.
            level_start_index: unused: it follows from the shapes.
            valid_ratios: [B, L, 2], real part of each level's (width, height).
            layout: the same geometry with Python sizes, which needs no synchronisation with the
                device; replaces masks, shapes and ratios.
            **kwargs: unused; upstream's transformers pass what their decoders need as well.

        Returns:
            The memory [B, N, C], every token in its place.

        Raises:
            ValueError: where neither ``layout`` nor ``spatial_shapes`` is given, or they do not fit
                the tokens.
        """
        if layout is None:
            if spatial_shapes is None:
                raise ValueError("the encoder needs layout or spatial_shapes")
            layout = LevelLayout.from_upstream(
                spatial_shapes=spatial_shapes,
                valid_ratios=valid_ratios,
                query_key_padding_mask=query_key_padding_mask,
                like_BNC=query,
            )
        elif layout.num_tokens != query.shape[1] or layout.batch_size != query.shape[0]:
            raise ValueError(
                f"the layout is of {layout.batch_size} images of {layout.num_tokens} tokens, "
                f"the features have shape {list(query.shape)}"
            )
        if reference_points is None:
            reference_points = layout.reference_points_BNL2().to(query.dtype)
        context = EncoderContext(
            layout=layout,
            memory_BNC=query,
            query_pos_BNC=query_pos,
            reference_points_BNL2=reference_points,
            num_layers=self.num_layers,
            run_dense=lambda: self._run_dense(context),
        )
        trace.begin_forward(layout)
        record_decoder_attention(layout)
        if self.sparsifier is None:
            return self._encode(context, TokenPlan(context), "updated")
        return self._encode(context, self.sparsifier.plan(context), self.sparsifier.value_policy)

    def _run_dense(self, context: EncoderContext) -> Tensor:
        with torch.no_grad(), trace.paused():
            return self._encode(context, TokenPlan(context), "updated")

    def _encode(self, context: EncoderContext, plan: TokenPlan, value_policy: str) -> Tensor:
        """Run all layers by a plan."""
        initial_BNC = memory_BNC = tokens_BKC = context.memory_BNC
        pos_BKC, reference_BKLX = context.query_pos_BNC, context.reference_points_BNL2
        previous: TokenMap | None = None
        for index in range(self.num_layers):
            token_map = plan.token_map(index, memory_BNC)
            trace.record_layer(token_map)
            if token_map is not previous:
                tokens_BKC = token_map.reduce(memory_BNC)
                reference_BKLX = token_map.select(context.reference_points_BNL2)
                if context.query_pos_BNC is not None:
                    pos_BKC = token_map.select(context.query_pos_BNC)
                previous = token_map
            tokens_BKC = plan.before_attention(index, tokens_BKC, token_map)
            value_BNC = initial_BNC if value_policy == "initial" else memory_BNC
            tokens_BKC = self._run_layer(
                index,
                tokens_BKC,
                None if value_BNC is tokens_BKC else value_BNC,
                pos_BKC,
                reference_BKLX,
                context.layout,
            )
            memory_BNC = token_map.restore(tokens_BKC, memory_BNC)
            plan.after_layer(index, tokens_BKC, token_map)
        if self.post_norm_layer is not None:
            memory_BNC = self.post_norm_layer(memory_BNC)
        return plan.finish(memory_BNC)

    def _run_layer(
        self,
        index: int,
        tokens_BKC: Tensor,
        value_BNC: Tensor | None,
        pos_BKC: Tensor | None,
        reference_BKLX: Tensor,
        layout: LevelLayout,
    ) -> Tensor:
        layer = self.layers[index]
        arguments = (
            tokens_BKC,
            value_BNC,
            pos_BKC,
            reference_BKLX,
            layout.padding_BN if layout.may_have_padding else None,
            layout.level_shapes,
        )
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False, context_fn=replay_contexts)
        return layer(*arguments)
