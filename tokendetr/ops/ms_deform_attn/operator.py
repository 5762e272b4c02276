"""Multi-scale deformable attention: public functions, computed by kernels or by PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokendetr.ops.autocast import autocasts, low, wide
from tokendetr.ops.checks import check_dense
from tokendetr.ops.fallback import use_extension
from tokendetr.ops.kernels import call_kernel
from tokendetr.ops.ms_deform_attn import checks
from tokendetr.ops.ms_deform_attn.reference import (
    LevelShapes,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)


def _pairs(flat: Sequence[int]) -> LevelShapes:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _run_reference(
    reference: Callable[..., Tensor],
    check: Callable[..., None],
    value: Tensor,
    shapes: Sequence[int],
    *coordinates: Tensor,
) -> Tensor:
    """Run the PyTorch form under the operators' autocast rule: only values in low precision."""
    if not autocasts(value):
        check(value, shapes, *coordinates)
        return reference(value, _pairs(shapes), *coordinates)
    kind = value.device.type
    value, coordinates = low(value, kind), tuple(wide(x, kind) for x in coordinates)
    check(value, shapes, *coordinates)
    with torch.autocast(kind, enabled=False):
        return reference(value, _pairs(shapes), *coordinates)


def _run_kernel(
    operator: Callable[..., Tensor], check: Callable[..., None], *arguments: Any
) -> Tensor:
    """Run a compiled operator, which checks its arguments."""
    try:
        return call_kernel(operator, *arguments)
    except ValueError:
        check(*arguments)  # the same checks in Python tell a wrong dtype from a wrong value
        raise


def _run(
    name: str,
    check: Callable[..., None],
    reference: Callable[..., Tensor],
    value: Tensor,
    level_shapes: Sequence[Sequence[int]] | Tensor,
    **coordinates: Tensor,
) -> Tensor:
    """Run the compiled operator of this name if there is one, else its PyTorch form."""
    check_dense(value=value, **coordinates)
    shapes = checks.flat_level_shapes(level_shapes)
    if use_extension(value):
        operator = getattr(torch.ops.tokendetr, name)
        return _run_kernel(operator, check, value, shapes, *coordinates.values())
    return _run_reference(reference, check, value, shapes, *coordinates.values())


def ms_deform_attn(
    value_BNMD: Tensor,
    level_shapes: Sequence[Sequence[int]] | Tensor,
    sampling_locations_BQMLP2: Tensor,
    attention_weights_BQMLP: Tensor,
) -> Tensor:
    """Sum bilinear samples of all levels, weighted by attention (arXiv 2010.04159, equation 2).

    Args:
        value_BNMD: values of all levels' pixels, finest level first, row by row; float64, float32,
            bfloat16 or float16. B, and Q below, may be 0.
        level_shapes: ``(height, width)`` of each level as Python integers, or an integer tensor of
            shape [L, 2].
        sampling_locations_BQMLP2: normalized ``(x, y)``; a pixel's center is at
            ``(index + 0.5) / size``; outside the level values are 0. Float32 (float64 for float64
            values) or the values' dtype. A location that is not finite contributes 0 and has
            gradient 0.
        attention_weights_BQMLP: weights, of the same dtypes as the locations.

    Returns:
        Tensor of shape [B, Q, M * D] and the values' dtype, summed in float32 (float64 for float64
        values).

    Raises:
        ValueError: a wrong shape, level size or device; the message names the argument.
        TypeError: a wrong dtype; the message names the argument.
    """
    return _run(
        "ms_deform_attn",
        checks.check_plain,
        ms_deform_attn_reference,
        value_BNMD,
        level_shapes,
        sampling_locations=sampling_locations_BQMLP2,
        attention_weights=attention_weights_BQMLP,
    )


def ms_deform_attn_fused(
    value_BNMD: Tensor,
    level_shapes: Sequence[Sequence[int]] | Tensor,
    reference_points_BQLX: Tensor,
    sampling_offsets_BQMLP2: Tensor,
    attention_logits_BQMLP: Tensor,
) -> Tensor:
    """Compute :func:`ms_deform_attn` from reference points, raw offsets and logits.

    Locations and weights are never stored.

    Args:
        value_BNMD: as in :func:`ms_deform_attn`.
        level_shapes: as in :func:`ms_deform_attn`.
        reference_points_BQLX: X = 2: a location is ``point + offset / (width, height)`` of the
            level; X = 4: it is ``center + offset / P * size * 0.5`` for boxes ``(cx, cy, w, h)``.
            All normalized.
        sampling_offsets_BQMLP2: raw offsets.
        attention_logits_BQMLP: raw logits; the weights are their softmax over the L * P samples of
            a head.

    Returns:
        Tensor of shape [B, Q, M * D] and the values' dtype.

    Raises:
        ValueError: a wrong shape, level size or device; the message names the argument.
        TypeError: a wrong dtype; the message names the argument.
    """
    return _run(
        "ms_deform_attn_fused",
        checks.check_fused,
        ms_deform_attn_fused_reference,
        value_BNMD,
        level_shapes,
        reference_points=reference_points_BQLX,
        sampling_offsets=sampling_offsets_BQMLP2,
        attention_logits=attention_logits_BQMLP,
    )
