"""Argument checks of packed attention, for its PyTorch form and the fake kernels.

Shapes: G container, T slot, M head, D head width, R side of a table of relative positions.
"""

import math

import torch
from torch import Tensor

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def packed_scale(scale: float | None, query_GTMD: Tensor) -> float:
    """Return the factor of the logits: ``scale``, or by default 1 / sqrt(head width).

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite.
    """
    if scale is None:
        return 1.0 if query_GTMD.dim() != 4 else float(max(query_GTMD.shape[3], 1)) ** -0.5
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a number or None, got {scale!r}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)


def _check(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    query: Tensor,
) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} must have shape {list(shape)} (from query), got {list(tensor.shape)}"
        )
    if tensor.device != query.device:
        raise ValueError(f"{name} is on {tensor.device}, query on {query.device}")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dict.fromkeys(dtypes))
        raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")


def _check_table(bias_table_MRR: Tensor, heads: int) -> None:
    shape = list(bias_table_MRR.shape)
    if len(shape) != 3 or shape[0] != heads or shape[1] != shape[2] or shape[1] % 2 != 1:
        raise ValueError(
            f"bias_table must have shape [{heads}, 2R + 1, 2R + 1] (heads from query), got {shape}"
        )


def check_packed(
    query_GTMD: Tensor,
    key_GTMD: Tensor,
    value_GTMD: Tensor,
    segment_GT: Tensor,
    position_GT2: Tensor | None,
    bias_table_MRR: Tensor | None,
    key_bias_GT: Tensor | None,
) -> None:
    """Check the tensors of ``packed_attention``.

    Raises:
        ValueError: a wrong shape or device; the message names the argument.
        TypeError: a wrong dtype; the message names the argument.
    """
    if query_GTMD.dim() != 4:
        raise ValueError(f"query must have shape [G, T, M, D], got {list(query_GTMD.shape)}")
    if query_GTMD.dtype not in _DTYPES:
        raise TypeError(
            f"query must be float64, float32, bfloat16 or float16, got {query_GTMD.dtype}"
        )
    containers, slots, heads, width = query_GTMD.shape
    if heads < 1 or width < 1:
        raise ValueError(
            f"query needs at least one head and one channel, got {list(query_GTMD.shape)}"
        )
    own = query_GTMD.dtype
    wide = (torch.float64 if own == torch.float64 else torch.float32, own)
    _check("key", key_GTMD, (containers, slots, heads, width), (own,), query_GTMD)
    _check("value", value_GTMD, (containers, slots, heads, width), (own,), query_GTMD)
    _check("segment", segment_GT, (containers, slots), (torch.int32,), query_GTMD)
    if (position_GT2 is None) != (bias_table_MRR is None):
        raise ValueError("position and bias_table must be given together or not at all")
    if position_GT2 is not None and bias_table_MRR is not None:
        _check("position", position_GT2, (containers, slots, 2), (torch.int32,), query_GTMD)
        _check_table(bias_table_MRR, heads)
        _check("bias_table", bias_table_MRR, tuple(bias_table_MRR.shape), wide, query_GTMD)
    if key_bias_GT is not None:
        _check("key_bias", key_bias_GT, (containers, slots), wide, query_GTMD)
