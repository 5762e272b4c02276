"""Multi-scale deformable attention as a module, with detrex's parameters and arguments.

Shapes: B image, N all tokens of all levels, Q query, C channel, L level, M head, P point, X = 2
    (points) or 4 (boxes).
"""

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from detrex import layers as detrex_layers
from torch import Tensor, nn

from tokendetr.layers.cpu.linears import linear_and_sum
from tokendetr.ops import ms_deform_attn_fused, sampling_locations
from tokendetr.ops.autocast import autocasts, low

LevelShapes = Sequence[Sequence[int]]


def _upstream_attention() -> type[nn.Module]:
    """Return detrex's class, which upstream's ``init_weights`` looks for by ``isinstance``."""
    upstream = getattr(detrex_layers, "MultiScaleDeformableAttention", None)
    if isinstance(upstream, type) and issubclass(upstream, nn.Module):
        return upstream
    return nn.Module  # a detrex without its compiled part has a placeholder there


_UpstreamAttention = _upstream_attention()


class MultiScaleDeformableAttention(_UpstreamAttention):  # type: ignore[valid-type, misc]
    """Multi-scale deformable attention: queries sample points around their reference points.

    Queries may be any set of tokens (all, kept or merged ones) or the decoder's queries; values are
    always the whole grids of all levels. Computed by the operators of :mod:`tokendetr.ops`.

    Args:
        embed_dim: channels C, a multiple of ``num_heads``.
        num_heads: heads M.
        num_levels: feature levels L.
        num_points: sampled points P per head and level.
        img2col_step: ignored; accepted for upstream's configs.
        dropout: probability of dropping an output channel before the residual is added.
        batch_first: queries and values are [B, Q, C]; otherwise [Q, B, C].

    Raises:
        ValueError: ``embed_dim`` is not a multiple of ``num_heads``.

    Source: Deformable DETR, arXiv 2010.04159, section 4.1; parameter names and arguments of
    ``detrex.layers.MultiScaleDeformableAttention``. Differs: a fused operator, which never stores
    weights and locations; ``level_shapes`` saves a synchronization with the device.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        img2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}"
            )
        head_width = embed_dim // num_heads
        if head_width & (head_width - 1):
            warnings.warn(
                f"{head_width} channels per head: a power of two runs faster", stacklevel=2
            )
        self.im2col_step = img2col_step
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.batch_first = batch_first
        samples = num_heads * num_levels * num_points
        self.dropout = nn.Dropout(dropout)
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Put point p of head m at p + 1 pixels in direction 2 pi m / M, with equal weights."""
        angle_M = torch.arange(self.num_heads, dtype=torch.float32) * (
            2.0 * math.pi / self.num_heads
        )
        ring_M2 = torch.stack([angle_M.cos(), angle_M.sin()], dim=-1)
        ring_M2 = ring_M2 / ring_M2.abs().amax(dim=-1, keepdim=True)
        distance_P = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offset_MLP2 = ring_M2[:, None, None, :] * distance_P[None, None, :, None]
        offset_MLP2 = offset_MLP2.expand(-1, self.num_levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(offset_MLP2.reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def sampling(self, query_BQC: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets [B, Q, M, L, P, 2] and logits [B, Q, M, L, P] of positioned queries."""
        return _sampling(self, query_BQC)

    def locations_and_weights(
        self, query_BQC: Tensor, reference_points_BQLX: Tensor, level_shapes: LevelShapes
    ) -> tuple[Tensor, Tensor]:
        """Return sampling locations and attention weights, see :func:`locations_and_weights`."""
        return locations_and_weights(self, query_BQC, reference_points_BQLX, level_shapes)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        *,
        level_shapes: LevelShapes | None = None,
        projected_value: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Attend from queries to the whole feature pyramid and add the residual.

        Args:
            query: [B, Q, C] with ``batch_first``, else [Q, B, C]; likewise ``value``, ``identity``
                and ``query_pos``.
            key: unused; upstream's transformers pass it.
            value: [B, N, C] features of all levels, finest first, row by row; None: ``query``.
            identity: the residual; None: ``query`` without positions.
            query_pos: positions, added to the queries.
            key_padding_mask: bool [B, N], True for padding values, whose projection becomes 0.
            reference_points: [B, Q, L, 2] normalized points or [B, Q, L, 4] normalized cxcywh
                boxes.
            spatial_shapes: integer [L, 2], (height, width) of each level; unused if
                ``level_shapes`` is given.
            level_start_index: unused; it follows from the shapes.
            level_shapes: the shapes as Python integers, which saves a synchronization with the
                device.
            projected_value: [B, N, C], the values after ``value_proj``, 0 for padding; replaces
                ``value`` and ``key_padding_mask``.
            **kwargs: unused; upstream's transformers pass the same arguments to all attentions.

        Returns:
            The attended queries plus the residual, shaped like ``query``.

        Raises:
            ValueError: reference points or level shapes are missing, or do not fit the values.
        """
        identity = query if identity is None else identity
        if reference_points is None:
            raise ValueError(
                "deformable attention needs reference_points of shape [B, Q, L, 2 or 4]"
            )
        shapes = spatial_shapes if level_shapes is None else level_shapes
        if shapes is None:
            raise ValueError("deformable attention needs level_shapes or spatial_shapes")
        value = query if value is None else value
        sampled_BQC = self.sample(
            self._batch_first(query),
            None if query_pos is None else self._batch_first(query_pos),
            self.values(self._batch_first(value), key_padding_mask)
            if projected_value is None
            else projected_value,
            reference_points,
            shapes,
        )
        return self.add_output(self._batch_first(sampled_BQC), identity)

    def values(self, value_BNC: Tensor, padding_BN: Tensor | None) -> Tensor:
        """Return the projected values [B, N, C], 0 for padding (True)."""
        projected_BNC: Tensor = self.value_proj(value_BNC)
        if padding_BN is not None:
            projected_BNC = projected_BNC.masked_fill(padding_BN[..., None], 0.0)
        return projected_BNC

    def sample(
        self,
        query_BQC: Tensor,
        query_pos_BQC: Tensor | None,
        projected_BNC: Tensor,
        reference_points_BQLX: Tensor,
        level_shapes: LevelShapes | Tensor,
    ) -> Tensor:
        """Return what the queries gather [B, Q, C], before the output projection.

        Args:
            query_BQC: the queries.
            query_pos_BQC: their positions.
            projected_BNC: the values after :meth:`values`.
            reference_points_BQLX: normalized points (X = 2) or boxes (X = 4).
            level_shapes: ``(height, width)`` of each level.
        """
        value_BNMD = projected_BNC.unflatten(-1, (self.num_heads, self.embed_dim // self.num_heads))
        wide = torch.float64 if value_BNMD.dtype == torch.float64 else torch.float32
        query_BQC = query_BQC if query_pos_BQC is None else query_BQC + query_pos_BQC
        if autocasts(query_BQC):
            query_BQC = low(query_BQC, query_BQC.device.type)  # once for both projections
        offsets, logits = self.sampling(query_BQC)
        return ms_deform_attn_fused(
            value_BNMD, level_shapes, reference_points_BQLX.to(wide), offsets, logits
        )

    def add_output(self, sampled: Tensor, identity: Tensor) -> Tensor:
        """Project what queries gathered, drop channels and add the residual; row by row."""
        if not self.dropout.training:
            return linear_and_sum(self.output_proj, sampled, identity)
        output: Tensor = self.dropout(self.output_proj(sampled)) + identity
        return output

    def _batch_first(self, x: Tensor) -> Tensor:
        """Swap batch and queries if the module has the queries first."""
        return x if self.batch_first else x.transpose(0, 1)


def _sampling(attention: Any, query_BQC: Tensor) -> tuple[Tensor, Tensor]:
    prefix = "num" if hasattr(attention, "num_heads") else "n"  # Deformable DETR's first code: n
    sizes = (getattr(attention, f"{prefix}_{name}") for name in ("heads", "levels", "points"))
    shape = (*query_BQC.shape[:2], *sizes)
    offsets_BQMLP2 = attention.sampling_offsets(query_BQC).view(*shape, 2)
    return offsets_BQMLP2, attention.attention_weights(query_BQC).view(shape)


def locations_and_weights(
    attention: nn.Module,
    query_BQC: Tensor,
    reference_points_BQLX: Tensor,
    level_shapes: LevelShapes,
) -> tuple[Tensor, Tensor]:
    """Return sampling locations and attention weights, for statistics of attention.

    Args:
        attention: for which :func:`is_deformable_attention` holds.
        query_BQC: queries plus positions.
        reference_points_BQLX: normalized points (X = 2) or boxes (X = 4).
        level_shapes: ``(height, width)`` of each level.

    Returns:
        Normalized locations [B, Q, M, L, P, 2] and softmax weights [B, Q, M, L, P].
    """
    offsets_BQMLP2, logits_BQMLP = _sampling(attention, query_BQC)
    shapes = tuple((int(height), int(width)) for height, width in level_shapes)
    locations = sampling_locations(shapes, reference_points_BQLX, offsets_BQMLP2)
    return locations, logits_BQMLP.flatten(-2).softmax(dim=-1).view(logits_BQMLP.shape)


DEFORMABLE_ATTENTIONS: tuple[type[nn.Module], ...] = (MultiScaleDeformableAttention,) + (
    () if _UpstreamAttention is nn.Module else (_UpstreamAttention,)
)
"""Classes of deformable attention: this one, and detrex's in its own detectors."""


def is_deformable_attention(module: nn.Module) -> bool:
    """Return whether a module is deformable attention, of this project or another.

    Others are detrex's, and those of the form of Deformable DETR's first code (``query`` with its
    positions added, ``reference_points``).
    """
    if isinstance(module, DEFORMABLE_ATTENTIONS):
        return True
    parts = (getattr(module, name, None) for name in ("sampling_offsets", "attention_weights"))
    if not all(isinstance(part, nn.Linear) for part in parts):
        return False
    return {"query", "reference_points"} <= inspect.signature(module.forward).parameters.keys()
