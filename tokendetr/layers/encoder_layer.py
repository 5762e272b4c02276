"""A layer of the deformable encoder, for any subset of the tokens.

Shapes: B image, N all tokens, K reduced tokens, C channel, L level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tokendetr.compat.torch_private import has_forward_hooks
from tokendetr.layers.blocks import blocks_pay, by_blocks
from tokendetr.layers.cpu.linears import is_linear
from tokendetr.layers.deformable_attention import MultiScaleDeformableAttention


@dataclass(frozen=True)
class SplitFeedForward:
    """Another feed-forward network for the first tokens of a layer.

    Attributes:
        count: number of these (reduced) tokens.
        block: their feed-forward network with residual and norm; maps [B, count, C] to the same
            shape.
    """

    count: int
    block: nn.Module


class EncoderLayer(nn.Module):
    """One encoder layer with the parameter names of detrex's ``BaseTransformerLayer``.

    Args:
        attention: the deformable attention.
        ffns: one feed-forward network for each "ffn" of the order.
        operation_order: "self_attn" once, "ffn" only after it, "norm" anywhere; pre-norm if "norm"
            comes first.

    Raises:
        ValueError: another order, or another number of networks.
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

    @property
    def value_projection(self) -> nn.Linear | None:
        """The attention's value projection, if its weights alone say what a value becomes.

        None if a norm stands before it, hooks see or change its output, or it is not a plain linear
        layer, but a quantized one or one with an adapter.
        """
        attention = self.attentions[0]
        if self.pre_norm or not isinstance(attention, MultiScaleDeformableAttention):
            return None
        projection = attention.value_proj
        return projection if is_linear(projection) else None

    def forward(
        self,
        tokens_BKC: Tensor,
        value_BNC: Tensor | None,
        query_pos_BKC: Tensor | None,
        reference_points_BKLX: Tensor,
        padding_BN: Tensor | None,
        level_shapes: tuple[tuple[int, int], ...],
        projected_BNC: Tensor | None = None,
        split: SplitFeedForward | None = None,
    ) -> Tensor:
        """Update tokens, with the whole grids as values.

        Args:
            tokens_BKC: the tokens to update.
            value_BNC: all tokens, or None if ``tokens_BKC`` are all tokens.
            query_pos_BKC: positions of the tokens to update.
            reference_points_BKLX: reference points of the tokens to update.
            padding_BN: bool, True = padding among the values.
            level_shapes: (height, width) of each level.
            projected_BNC: the attention's value projection of all tokens, 0 for padding, if it is
                known; replaces ``value_BNC``.
            split: another feed-forward network for the first tokens; None: one for all.

        Returns:
            The updated tokens [B, K, C].
        """
        attention_at = self.operation_order.index("self_attn")
        query, value = tokens_BKC, value_BNC
        for norm in list(self.norms)[:attention_at]:  # a slice of a ModuleList is a new module
            query = norm(query)
            if value is not None and projected_BNC is None:
                value = norm(value)
        attention = cast(MultiScaleDeformableAttention, self.attentions[0])
        if split is None and self._works_in_blocks(attention, query):
            if projected_BNC is None:
                projected_BNC = attention.values(query if value is None else value, padding_BN)
            sampled_BKC = attention.sample(
                query, query_pos_BKC, projected_BNC, reference_points_BKLX, level_shapes
            )
            return self._after_sampling_in_blocks(attention, sampled_BKC, tokens_BKC)
        attended_BKC = attention(
            query,
            value=value,
            identity=tokens_BKC if self.pre_norm else None,
            query_pos=query_pos_BKC,
            key_padding_mask=padding_BN,
            reference_points=reference_points_BKLX,
            level_shapes=level_shapes,
            projected_value=projected_BNC,
        )
        if split is not None:
            return self._after_attention_split(attended_BKC, split)
        return self._after_attention(attended_BKC)

    def _works_in_blocks(self, attention: nn.Module, query_BKC: Tensor) -> bool:
        """Return True if what follows the sampling may run block by block, in this code's form."""
        return (
            type(attention) is MultiScaleDeformableAttention
            and "forward" not in vars(attention)
            and attention.batch_first
            and not has_forward_hooks(attention)
            and blocks_pay(query_BKC, training=self.training)
        )

    def _after_sampling_in_blocks(
        self, attention: MultiScaleDeformableAttention, sampled_BKC: Tensor, tokens_BKC: Tensor
    ) -> Tensor:
        """Run the rest of the layer block by block; may overwrite ``sampled_BKC``."""

        def rest(sampled_KC: Tensor, tokens_KC: Tensor) -> Tensor:
            attended_BKC = attention.add_output(sampled_KC[None], tokens_KC[None])
            return self._after_attention(attended_BKC)[0]

        of_all_images = sampled_BKC.flatten(0, 1)
        rows = by_blocks(rest, of_all_images, tokens_BKC.flatten(0, 1), into=of_all_images)
        return rows.view(tokens_BKC.shape)

    def _after_attention_split(self, attended_BKC: Tensor, split: SplitFeedForward) -> Tensor:
        """Run the rest of the layer, with another network for the first tokens."""
        if self.operation_order != ("self_attn", "norm", "ffn", "norm"):
            raise ValueError(
                "another feed-forward network for some tokens needs the order self_attn, norm, "
                f"ffn, norm; the layer has {self.operation_order}"
            )
        first_BTC = split.block(self.norms[0](attended_BKC[:, : split.count]))
        return torch.cat([first_BTC, self._after_attention(attended_BKC[:, split.count :])], dim=1)

    def _after_attention(self, attended_BKC: Tensor) -> Tensor:
        """Run the norms and feed-forward networks that follow the attention."""
        attention_at = self.operation_order.index("self_attn")
        norms, ffns = iter(list(self.norms)[attention_at:]), iter(self.ffns)
        tokens_BKC = attended_BKC
        for name in self.operation_order[attention_at + 1 :]:
            if name == "ffn":
                tokens_BKC = next(ffns)(tokens_BKC, attended_BKC if self.pre_norm else None)
            else:
                tokens_BKC = next(norms)(tokens_BKC)
        return tokens_BKC
