"""Multi-head attention with residual connection: plain, and conditional as in Conditional DETR.

Source: Meng et al., 2021, "Conditional DETR for Fast Training Convergence".
"""

import warnings
from typing import Any

import torch
from torch import nn


def _key_position(
    owner: nn.Module,
    key: torch.Tensor,
    query_pos: torch.Tensor | None,
    key_pos: torch.Tensor | None,
) -> torch.Tensor | None:
    """Return the keys' position embedding; by default the queries', if the shapes allow it."""
    if key_pos is not None or query_pos is None:
        return key_pos
    if query_pos.shape == key.shape:
        return query_pos
    warnings.warn(f"position encoding of key is missing in {type(owner).__name__}.")
    return None


class MultiheadAttention(nn.Module):
    """``torch.nn.MultiheadAttention`` with position embeddings, dropout and a residual.

    Args:
        embed_dim: channels C.
        num_heads: heads, a divisor of ``embed_dim``.
        attn_drop: dropout probability of the attention weights.
        proj_drop: dropout probability of the output.
        batch_first: True for [B, Q, C] inputs, False for [Q, B, C].
        **kwargs: further arguments of ``torch.nn.MultiheadAttention``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        batch_first: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.batch_first = batch_first
        self.attn = nn.MultiheadAttention(
            embed_dim, num_heads, dropout=attn_drop, batch_first=batch_first, **kwargs
        )
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        identity: torch.Tensor | None = None,
        query_pos: torch.Tensor | None = None,
        key_pos: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend and add the identity.

        Args:
            query: [Q, B, C] ([B, Q, C] when batch-first).
            key: [K, B, C], ``query`` when None.
            value: the shape of ``key``, ``key`` when None.
            identity: residual to add the result to, ``query`` (without position) when None.
            query_pos: added to ``query``.
            key_pos: added to ``key``; ``query_pos`` when None and of the shape of ``key``.
            attn_mask: [Q, K] or [B * heads, Q, K], True (or -inf) where attention is forbidden.
            key_padding_mask: [B, K], True where a key is padding.
            **kwargs: ignored.

        Returns:
            The shape of ``query``.
        """
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        key_pos = _key_position(self, key, query_pos, key_pos)
        if query_pos is not None:
            query = query + query_pos
        if key_pos is not None:
            key = key + key_pos
        # In evaluation only a hook could read the weights, and omitting them is faster.
        out, _ = self.attn(
            query,
            key,
            value,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            need_weights=self.training or bool(self.attn._forward_hooks),
        )
        return identity + self.proj_drop(out)


class _ConditionalAttention(nn.Module):
    """Base of the conditional attentions: layouts and masked dot-product attention."""

    attn_drop: nn.Dropout
    proj_drop: nn.Dropout
    out_proj: nn.Linear

    def __init__(self, embed_dim: int, num_heads: int, batch_first: bool) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.batch_first = batch_first

    def _batch_first(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors as [B, *, C]."""
        return tensors if self.batch_first else tuple(t.transpose(0, 1) for t in tensors)

    def _positions(
        self, key: torch.Tensor, query_pos: torch.Tensor | None, key_pos: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both position embeddings; raise ValueError if one is missing."""
        key_pos = _key_position(self, key, query_pos, key_pos)
        if query_pos is None or key_pos is None:
            raise ValueError(f"{type(self).__name__} needs query_pos and key_pos, one is None")
        return query_pos, key_pos

    def _heads(self, x_BNC: torch.Tensor) -> torch.Tensor:
        """Reshape [B, N, C] to [B, heads, N, C / heads]."""
        return x_BNC.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _attend(
        self,
        q_BMQD: torch.Tensor,
        k_BMKD: torch.Tensor,
        v_BMKD: torch.Tensor,
        attn_mask: torch.Tensor | None,
        key_padding_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the projected result of masked attention in the module's layout."""
        logits = (q_BMQD * q_BMQD.shape[-1] ** -0.5) @ k_BMKD.transpose(-2, -1)
        if attn_mask is not None:
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
            if attn_mask.dtype == torch.bool:
                logits = logits.masked_fill(attn_mask, float("-inf"))
            else:
                logits = logits + attn_mask
        if key_padding_mask is not None:
            logits = logits.masked_fill(key_padding_mask[:, None, None], float("-inf"))
        weights = self.attn_drop(logits.softmax(dim=-1))
        out_BQC = self.out_proj((weights @ v_BMKD).transpose(1, 2).flatten(2))
        return out_BQC if self.batch_first else out_BQC.transpose(0, 1)


class ConditionalSelfAttention(_ConditionalAttention):
    """Self-attention that projects content and position parts separately and adds them.

    Args:
        embed_dim: channels C.
        num_heads: heads, a divisor of ``embed_dim``.
        attn_drop: dropout probability of the attention weights.
        proj_drop: dropout probability of the output.
        batch_first: True for [B, Q, C] inputs, False for [Q, B, C].
        **kwargs: ignored.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        batch_first: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, batch_first)
        self.query_content_proj = nn.Linear(embed_dim, embed_dim)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.key_content_proj = nn.Linear(embed_dim, embed_dim)
        self.key_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)
        self.scale = (embed_dim // num_heads) ** -0.5

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        identity: torch.Tensor | None = None,
        query_pos: torch.Tensor | None = None,
        key_pos: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend and add the identity; arguments as for :class:`MultiheadAttention`.

        Raises:
            ValueError: ``query_pos`` is missing, or ``key_pos`` is and cannot be taken from it.
        """
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        query_pos, key_pos = self._positions(key, query_pos, key_pos)
        query, key, value, query_pos, key_pos = self._batch_first(
            query, key, value, query_pos, key_pos
        )
        q = self.query_content_proj(query) + self.query_pos_proj(query_pos)
        k = self.key_content_proj(key) + self.key_pos_proj(key_pos)
        v = self.value_proj(value)
        out = self._attend(
            self._heads(q), self._heads(k), self._heads(v), attn_mask, key_padding_mask
        )
        return identity + self.proj_drop(out)


class ConditionalCrossAttention(_ConditionalAttention):
    """Cross-attention that concatenates, per head, content and position parts of queries and keys.

    Args:
        embed_dim: channels C.
        num_heads: heads, a divisor of ``embed_dim``.
        attn_drop: dropout probability of the attention weights.
        proj_drop: dropout probability of the output.
        batch_first: True for [B, Q, C] inputs, False for [Q, B, C].
        **kwargs: ignored.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        batch_first: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, batch_first)
        self.query_content_proj = nn.Linear(embed_dim, embed_dim)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.query_pos_sine_proj = nn.Linear(embed_dim, embed_dim)
        self.key_content_proj = nn.Linear(embed_dim, embed_dim)
        self.key_pos_proj = nn.Linear(embed_dim, embed_dim)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        identity: torch.Tensor | None = None,
        query_pos: torch.Tensor | None = None,
        key_pos: torch.Tensor | None = None,
        query_sine_embed: torch.Tensor | None = None,
        is_first_layer: bool = False,
        attn_mask: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend and add the identity.

        Args:
            query: see :class:`MultiheadAttention`, as for the arguments not listed here.
            key: [K, B, C].
            value: the shape of ``key``.
            identity: residual to add the result to.
            query_pos: learned query positions, used by the first layer only.
            key_pos: position embedding of the keys.
            query_sine_embed: sine embedding of the queries' reference points, the shape of
                ``query``.
            is_first_layer: also add the position parts to the content parts.
            attn_mask: True where attention is forbidden.
            key_padding_mask: True where a key is padding.
            **kwargs: ignored.

        Raises:
            ValueError: a position embedding is missing.
        """
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        query_pos, key_pos = self._positions(key, query_pos, key_pos)
        if query_sine_embed is None:
            raise ValueError(f"{type(self).__name__} needs query_sine_embed, got None")
        query, key, value, query_pos, key_pos, query_sine_embed = self._batch_first(
            query, key, value, query_pos, key_pos, query_sine_embed
        )
        q = self.query_content_proj(query)
        k = self.key_content_proj(key)
        v = self.value_proj(value)
        key_pos = self.key_pos_proj(key_pos)
        if is_first_layer:
            q = q + self.query_pos_proj(query_pos)
            k = k + key_pos
        query_sine_embed = self.query_pos_sine_proj(query_sine_embed)
        q_heads = torch.cat([self._heads(q), self._heads(query_sine_embed)], dim=-1)
        k_heads = torch.cat([self._heads(k), self._heads(key_pos)], dim=-1)
        out = self._attend(q_heads, k_heads, self._heads(v), attn_mask, key_padding_mask)
        return identity + self.proj_drop(out)
