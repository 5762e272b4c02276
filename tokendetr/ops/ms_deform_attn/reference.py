"""Multi-scale deformable attention in PyTorch: the reference of the kernels and their fallback.

Per level the sampled values come from :func:`torch.nn.functional.grid_sample` (Deformable DETR,
arXiv 2010.04159, equation 2). Two rules go beyond ``grid_sample`` and hold for every kernel of this
project too: a sampling location that is not finite contributes 0 and has gradient 0, and values in
half precision are sampled and summed in float32.

Shapes: B image, N token, Q query, M head, D head width, L level, P point, A pairs of image and
head, S samples of a query.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LevelShapes = tuple[tuple[int, int], ...]

_OUTSIDE = -2.0
"""A normalized coordinate outside every level, even one that is a single pixel wide."""


def _accumulate_dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _finite_locations(locations_BQMLP2: Tensor) -> Tensor:
    """Move locations that are not finite outside the image (gradient 0), and clamp distant ones."""
    finite = locations_BQMLP2.isfinite().all(dim=-1, keepdim=True)
    return torch.where(finite, locations_BQMLP2, _OUTSIDE).clamp(_OUTSIDE, 1.0 - _OUTSIDE)


def ms_deform_attn_reference(
    value_BNMD: Tensor,
    level_shapes: LevelShapes,
    sampling_locations_BQMLP2: Tensor,
    attention_weights_BQMLP: Tensor,
) -> Tensor:
    """Sample every level bilinearly and sum the samples with their attention weights.

    Args:
        value_BNMD: values of all levels' pixels, finest level first, row by row.
        level_shapes: ``(height, width)`` of each level; their areas add up to N.
        sampling_locations_BQMLP2: ``(x, y)`` with (0, 0) the upper left and (1, 1) the lower right
            corner of a level.
        attention_weights_BQMLP: weight of each sample.

    Returns:
        Tensor of shape [B, Q, M * D] and the dtype of ``value_BNMD``.
    """
    batch, _, heads, width = value_BNMD.shape
    queries, points = sampling_locations_BQMLP2.shape[1], sampling_locations_BQMLP2.shape[4]
    if batch * queries * heads * width == 0:
        touched = value_BNMD.sum() + sampling_locations_BQMLP2.sum() + attention_weights_BQMLP.sum()
        return value_BNMD.new_zeros(batch, queries, heads * width) + (0 * touched).to(
            value_BNMD.dtype
        )
    dtype = _accumulate_dtype(value_BNMD)
    grid_BQMLP2 = 2 * _finite_locations(sampling_locations_BQMLP2.to(dtype)) - 1
    levels = value_BNMD.to(dtype).split([h * w for h, w in level_shapes], dim=1)
    samples = []
    for level, (height, level_width) in enumerate(level_shapes):
        image = levels[level].permute(0, 2, 3, 1).reshape(batch * heads, width, height, level_width)
        grid = grid_BQMLP2[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(
            F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    samples_ADQS = torch.stack(samples, dim=-2).flatten(-2)
    weights_A1QS = (
        attention_weights_BQMLP.to(dtype)
        .transpose(1, 2)
        .reshape(batch * heads, 1, queries, len(level_shapes) * points)
    )
    output_ADQ = (samples_ADQS * weights_A1QS).sum(dim=-1)
    output_BQC = output_ADQ.view(batch, heads * width, queries).transpose(1, 2)
    return output_BQC.contiguous().to(value_BNMD.dtype)


def sampling_locations(
    level_shapes: LevelShapes, reference_points_BQLX: Tensor, sampling_offsets_BQMLP2: Tensor
) -> Tensor:
    """Convert raw offsets to normalized locations by Deformable DETR's two rules.

    Args:
        level_shapes: ``(height, width)`` of each level.
        reference_points_BQLX: X = 2: normalized points, and offsets in pixels of their level;
            X = 4: normalized ``(cx, cy, w, h)`` boxes, and offsets in half box sizes divided by the
            number of points.
        sampling_offsets_BQMLP2: raw offsets.

    Returns:
        Normalized ``(x, y)`` locations of shape [B, Q, M, L, P, 2].
    """
    reference = reference_points_BQLX[:, :, None, :, None, :]
    if reference_points_BQLX.shape[-1] == 2:
        # Not new_tensor, which cannot be traced inside a decomposition.
        sizes = [sampling_offsets_BQMLP2.new_full((1,), n) for h, w in level_shapes for n in (w, h)]
        size_L12 = torch.cat(sizes).view(-1, 1, 2)
        return reference + sampling_offsets_BQMLP2 / size_L12
    points = sampling_offsets_BQMLP2.shape[4]
    return reference[..., :2] + sampling_offsets_BQMLP2 / points * reference[..., 2:] * 0.5


def ms_deform_attn_fused_reference(
    value_BNMD: Tensor,
    level_shapes: LevelShapes,
    reference_points_BQLX: Tensor,
    sampling_offsets_BQMLP2: Tensor,
    attention_logits_BQMLP: Tensor,
) -> Tensor:
    """Compute :func:`ms_deform_attn_reference` from reference points, raw offsets and logits.

    Weights are the softmax of the logits over L * P.

    Returns:
        Tensor of shape [B, Q, M * D] and the dtype of ``value_BNMD``.
    """
    dtype = _accumulate_dtype(value_BNMD)
    locations_BQMLP2 = sampling_locations(
        level_shapes, reference_points_BQLX.to(dtype), sampling_offsets_BQMLP2.to(dtype)
    )
    logits = attention_logits_BQMLP.to(dtype)
    weights_BQMLP = logits.flatten(-2).softmax(dim=-1).view(logits.shape)
    return ms_deform_attn_reference(value_BNMD, level_shapes, locations_BQMLP2, weights_BQMLP)
