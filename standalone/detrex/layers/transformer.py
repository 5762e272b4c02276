"""Transformer layers assembled from attention, feed-forward and normalization modules."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_OPERATIONS = ("self_attn", "cross_attn", "norm", "ffn")


class BaseTransformerLayer(nn.Module):
    """Transformer layer that runs its operations in a configured order.

    An order that starts with "norm" makes a pre-norm layer: its residual connections start before
    the norm.

    Args:
        attn: one attention module (copied for each attention of the order) or one module per
            attention.
        ffn: feed-forward module, copied for each "ffn".
        norm: normalization module, copied for each "norm".
        operation_order: of "self_attn", "cross_attn", "norm" and "ffn", e.g. ("self_attn", "norm",
            "ffn", "norm").

    Raises:
        ValueError: the order is missing or holds something else, or the number of attention modules
            does not fit it.
    """

    def __init__(
        self,
        attn: nn.Module | Sequence[nn.Module],
        ffn: nn.Module,
        norm: nn.Module,
        operation_order: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        order = tuple(operation_order or ())
        num_attn = sum(name.endswith("attn") for name in order)
        if not set(order) <= set(_OPERATIONS) or num_attn == 0:
            raise ValueError(
                f"operation_order must hold operations of {_OPERATIONS}, at least one attention"
                f" among them; got {operation_order}"
            )
        if isinstance(attn, nn.Module):
            attn = [copy.deepcopy(attn) for _ in range(num_attn)]
        elif len(attn) != num_attn:
            raise ValueError(
                f"operation_order {order} needs {num_attn} attention modules, got {len(attn)}"
            )
        self.num_attn = num_attn
        self.operation_order = order
        self.pre_norm = order[0] == "norm"
        self.attentions = nn.ModuleList(attn)
        self.embed_dim = self.attentions[0].embed_dim
        self.ffns = nn.ModuleList(copy.deepcopy(ffn) for _ in range(order.count("ffn")))
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(order.count("norm")))

    def _masks_per_attention(
        self, attn_masks: torch.Tensor | Sequence[torch.Tensor | None] | None
    ) -> Sequence[torch.Tensor | None]:
        """Return one mask (or None) for each attention of this layer."""
        if attn_masks is None:
            return [None] * self.num_attn
        if isinstance(attn_masks, torch.Tensor):
            warnings.warn(f"{type(self).__name__} uses one mask in all its attentions")
            return [attn_masks] * self.num_attn
        if len(attn_masks) != self.num_attn:
            raise ValueError(
                f"attn_masks has {len(attn_masks)} entries but operation_order"
                f" {self.operation_order} has {self.num_attn} attentions"
            )
        return attn_masks

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        query_pos: torch.Tensor | None = None,
        key_pos: torch.Tensor | None = None,
        attn_masks: torch.Tensor | Sequence[torch.Tensor | None] | None = None,
        query_key_padding_mask: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the operations in order.

        Args:
            query: [Q, B, C], or [B, Q, C] if the attentions are batch-first.
            key: keys of "cross_attn".
            value: values of "cross_attn", the shape of ``key``.
            query_pos: position embedding of ``query`` (also of the keys of "self_attn").
            key_pos: position embedding of ``key``.
            attn_masks: one mask per attention, or one for all of them.
            query_key_padding_mask: [B, Q], True where a query is padding; for "self_attn".
            key_padding_mask: [B, K], True where a key is padding; for "cross_attn".
            **kwargs: passed to every attention.

        Returns:
            The shape of ``query``.
        """
        masks = iter(self._masks_per_attention(attn_masks))
        attentions, norms, ffns = iter(self.attentions), iter(self.norms), iter(self.ffns)
        identity = query
        for operation in self.operation_order:
            if operation == "norm":
                query = next(norms)(query)
                continue
            residual = identity if self.pre_norm else None
            if operation == "ffn":
                query = next(ffns)(query, residual)
                continue
            to_self = operation == "self_attn"
            query = next(attentions)(
                query,
                query if to_self else key,
                query if to_self else value,
                residual,
                query_pos=query_pos,
                key_pos=query_pos if to_self else key_pos,
                attn_mask=next(masks),
                key_padding_mask=query_key_padding_mask if to_self else key_padding_mask,
                **kwargs,
            )
            identity = query
        return query


class TransformerLayerSequence(nn.Module):
    """Base class of encoders and decoders: holds the layers; subclasses run them.

    Args:
        transformer_layers: one layer, copied ``num_layers`` times, or a list of ``num_layers``
            layers.
        num_layers: number of layers.

    Raises:
        ValueError: a list whose length is not ``num_layers``, or a single layer without
            ``num_layers``.
    """

    def __init__(
        self,
        transformer_layers: nn.Module | Sequence[nn.Module] | None = None,
        num_layers: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(transformer_layers, nn.Module):
            if num_layers is None:
                raise ValueError("num_layers is needed to repeat a single transformer layer")
            layers = [copy.deepcopy(transformer_layers) for _ in range(num_layers)]
        else:
            layers = list(transformer_layers or ())
            if len(layers) != num_layers:
                raise ValueError(
                    f"got {len(layers)} transformer layers for num_layers={num_layers}"
                )
        self.num_layers = num_layers
        self.layers = nn.ModuleList(layers)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layers; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")
