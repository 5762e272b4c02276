"""Multi-scale deformable attention (Zhu et al., 2021, "Deformable DETR"), in plain PyTorch."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def multi_scale_deformable_attn_pytorch(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor | Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Sum weighted bilinear samples of several feature maps.

    Pixel centers are at (i + 0.5) / size; samples outside a map are zero.

    Args:
        value: [B, N, M, D], the maps' pixels row by row, one map after the other.
        value_spatial_shapes: (height, width) of each of the L maps; N is the sum of their products.
        sampling_locations: [B, Q, M, L, P, 2] as (x, y), (0, 0) and (1, 1) being the corners of the
            map.
        attention_weights: [B, Q, M, L, P].

    Returns:
        [B, Q, M * D], in the widest of the three floating types.
    """
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    value, sampling_locations = value.to(dtype), sampling_locations.to(dtype)
    batch, _, num_heads, head_dim = value.shape
    num_queries, num_points = sampling_locations.shape[1], sampling_locations.shape[4]
    shapes = _python_shapes(value_spatial_shapes)
    value_maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=-1)
    # grid_sample wants coordinates in [-1, 1] and one grid per (image, head)
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1).unbind(2)
    samples = [
        F.grid_sample(
            value_map.unflatten(-1, shape),
            grid,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        for value_map, shape, grid in zip(value_maps, shapes, grids, strict=True)
    ]
    weights = attention_weights.transpose(1, 2).reshape(
        batch * num_heads, 1, num_queries, len(shapes) * num_points
    )
    output = (torch.cat(samples, dim=-1) * weights).sum(-1)
    return output.view(batch, num_heads * head_dim, num_queries).transpose(1, 2).contiguous()


def _python_shapes(shapes: torch.Tensor | Sequence[Any]) -> list[tuple[int, int]]:
    """Return (height, width) of every level as Python ints."""
    if isinstance(shapes, torch.Tensor):
        shapes = shapes.tolist()
    return [(int(height), int(width)) for height, width in shapes]


class MultiScaleDeformableAttention(nn.Module):
    """Attention to a few learned points around each query's reference on every level.

    Args:
        embed_dim: channels C.
        num_heads: heads M, a divisor of ``embed_dim``.
        num_levels: feature maps L.
        num_points: sampling points P per head and level.
        img2col_step: images that compiled kernels process at once; unused in plain PyTorch.
        dropout: dropout probability of the output before the residual connection.
        batch_first: True for [B, Q, C] inputs, False for [Q, B, C].

    Raises:
        ValueError: ``embed_dim`` is not a multiple of ``num_heads``.
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
        super().__init__()
        if embed_dim % num_heads != 0:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        head_dim = embed_dim // num_heads
        if head_dim & (head_dim - 1):
            warnings.warn(
                f"heads of {head_dim} channels make deformable attention slow; use a power of two"
            )
        self.dropout = nn.Dropout(dropout)
        self.batch_first = batch_first
        self.im2col_step = img2col_step
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Start with uniform attention: head m looks in direction 2 pi m / M, p + 1 pixels far."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (
            2.0 * math.pi / self.num_heads
        )
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        # on the unit square rather than the circle
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets_MLP2 = (directions[:, None, None] * steps[:, None]).repeat(1, self.num_levels, 1, 1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets_MLP2.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def _sampling_locations(
        self, query: torch.Tensor, reference_points: torch.Tensor, shapes: list[tuple[int, int]]
    ) -> torch.Tensor:
        """Return normalized sampling points [B, Q, M, L, P, 2] around the points or boxes."""
        offsets = self.sampling_offsets(query).unflatten(
            -1, (self.num_heads, self.num_levels, self.num_points, 2)
        )
        reference = reference_points[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            size_L2 = reference_points.new_tensor([(width, height) for height, width in shapes])
            return reference + offsets / size_L2[:, None]
        if reference_points.shape[-1] == 4:
            return reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
        raise ValueError(
            "reference_points must end in 2 (points) or 4 (boxes) coordinates, got shape"
            f" {tuple(reference_points.shape)}"
        )

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        identity: torch.Tensor | None = None,
        query_pos: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
        reference_points: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        level_start_index: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend and add the identity.

        Args:
            query: [Q, B, C] ([B, Q, C] when batch-first).
            key: ignored; the attention weights come from the query alone.
            value: flattened feature maps [N, B, C] ([B, N, C]), ``query`` when None.
            identity: residual to add the result to, ``query`` (without position) when None.
            query_pos: added to ``query``.
            key_padding_mask: [B, N], True where the value is padding and reads as zero.
            reference_points: normalized points (x, y) [B, Q, L, 2] or boxes (x, y, w, h) [B, Q, L,
                4].
            spatial_shapes: integers [L, 2], (height, width) of every map.
            level_start_index: [L], first row of every map in ``value``; it follows from
                ``spatial_shapes``.
            **kwargs: ignored.

        Returns:
            The shape of ``query``.

        Raises:
            ValueError: reference points or shapes are missing or do not fit each other or
                ``value``.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError(
                "deformable attention needs reference_points and spatial_shapes, one is None"
            )
        value = query if value is None else value
        identity = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        shapes = _python_shapes(spatial_shapes)
        if sum(height * width for height, width in shapes) != value.shape[1]:
            raise ValueError(f"spatial_shapes {shapes} do not add up to {value.shape[1]} values")

        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        output = multi_scale_deformable_attn_pytorch(
            value.unflatten(-1, (self.num_heads, -1)),
            shapes,
            self._sampling_locations(query, reference_points, shapes),
            weights.unflatten(-1, (self.num_levels, self.num_points)),
        )
        output = self.output_proj(output)
        if not self.batch_first:
            output = output.transpose(0, 1)
        return self.dropout(output) + identity
