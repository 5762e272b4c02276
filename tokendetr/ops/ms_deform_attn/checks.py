"""Argument checks of multi-scale deformable attention; the compiled kernels repeat them in C++."""

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LEVELS = 16
MAX_SAMPLES = 256
_VALUE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def flat_level_shapes(level_shapes: Sequence[Sequence[int]] | Tensor) -> list[int]:
    """Return ``[h0, w0, h1, w1, ...]`` from pairs or from an integer tensor of shape [L, 2].

    Raises:
        ValueError: another shape.
        TypeError: a size is not an integer.
    """
    if isinstance(level_shapes, Tensor):
        if level_shapes.dim() != 2 or level_shapes.shape[1] != 2:
            raise ValueError(f"level_shapes must have shape [L, 2], got {list(level_shapes.shape)}")
        if (
            level_shapes.is_floating_point()
            or level_shapes.dtype == torch.bool
            or level_shapes.is_complex()
        ):
            raise TypeError(f"level_shapes must hold integers, got {level_shapes.dtype}")
        return [int(size) for pair in level_shapes.tolist() for size in pair]
    if not isinstance(level_shapes, Sequence) or isinstance(level_shapes, str):
        raise TypeError(f"level_shapes must be (height, width) pairs, got {level_shapes!r}")
    flat: list[int] = []
    for pair in level_shapes:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"level_shapes must be (height, width) pairs, got {pair!r}")
        flat.extend(pair)
    for size in flat:
        if isinstance(size, bool) or not isinstance(size, int | torch.SymInt):
            raise TypeError(f"level_shapes must hold integers, got {size!r}")
        if isinstance(size, int) and abs(size) >= 2**63:
            raise ValueError(f"level_shapes must hold 64-bit integers, got {size}")
    return flat


def _check_levels(value_BNMD: Tensor, level_shapes: Sequence[int]) -> int:
    levels, odd = divmod(len(level_shapes), 2)
    if levels == 0 or odd or levels > MAX_LEVELS:
        raise ValueError(
            f"level_shapes must have 1 to {MAX_LEVELS} (height, width) pairs, "
            f"got {list(level_shapes)}"
        )
    if any(size <= 0 for size in level_shapes):
        raise ValueError(f"level_shapes must be positive, got {list(level_shapes)}")
    tokens = sum(h * w for h, w in zip(level_shapes[::2], level_shapes[1::2], strict=True))
    if tokens != value_BNMD.shape[1]:
        raise ValueError(f"level_shapes add up to {tokens} tokens, value has {value_BNMD.shape[1]}")
    return levels


def _check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], value_BNMD: Tensor, basis: str
) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} must have shape {list(shape)} (from {basis}), got {list(tensor.shape)}"
        )
    if tensor.device != value_BNMD.device:
        raise ValueError(f"{name} is on {tensor.device}, value on {value_BNMD.device}")
    widest = torch.float64 if value_BNMD.dtype == torch.float64 else torch.float32
    if tensor.dtype not in (value_BNMD.dtype, widest):
        raise TypeError(
            f"{name} must be {widest} or value's dtype {value_BNMD.dtype}, got {tensor.dtype}"
        )


def check_value(value_BNMD: Tensor, level_shapes: Sequence[int]) -> int:
    """Check the values and the level shapes; return the number of levels."""
    if value_BNMD.dim() != 4:
        raise ValueError(f"value must have shape [B, N, M, D], got {list(value_BNMD.shape)}")
    if value_BNMD.dtype not in _VALUE_DTYPES:
        raise TypeError(
            f"value must be float64, float32, bfloat16 or float16, got {value_BNMD.dtype}"
        )
    if value_BNMD.shape[2] < 1 or value_BNMD.shape[3] < 1:
        raise ValueError(
            f"value needs at least one head and one channel, got {list(value_BNMD.shape)}"
        )
    return _check_levels(value_BNMD, level_shapes)


def _check_samples(name: str, tensor: Tensor, levels: int, value_BNMD: Tensor) -> tuple[int, int]:
    if tensor.dim() != 6:
        raise ValueError(f"{name} must have shape [B, Q, M, L, P, 2], got {list(tensor.shape)}")
    queries, points = tensor.shape[1], tensor.shape[4]
    if points < 1 or levels * points > MAX_SAMPLES:
        raise ValueError(
            f"{name} must have 1 to {MAX_SAMPLES // levels} points per level, got {points}"
        )
    batch, _, heads, _ = value_BNMD.shape
    _check_tensor(
        name,
        tensor,
        (batch, queries, heads, levels, points, 2),
        value_BNMD,
        "value and level_shapes",
    )
    return queries, points


def check_plain(
    value_BNMD: Tensor, level_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> None:
    """Check the arguments of ``ms_deform_attn``.

    Raises:
        ValueError: a wrong shape, size or device; the message names the argument.
        TypeError: a wrong type or dtype; the message names the argument.
    """
    levels = check_value(value_BNMD, level_shapes)
    queries, points = _check_samples("sampling_locations", locations, levels, value_BNMD)
    batch, _, heads, _ = value_BNMD.shape
    _check_tensor(
        "attention_weights",
        weights,
        (batch, queries, heads, levels, points),
        value_BNMD,
        "value, level_shapes and sampling_locations",
    )


def check_fused(
    value_BNMD: Tensor,
    level_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> None:
    """Check the arguments of ``ms_deform_attn_fused``; raises as :func:`check_plain` does."""
    levels = check_value(value_BNMD, level_shapes)
    queries, points = _check_samples("sampling_offsets", offsets, levels, value_BNMD)
    batch, _, heads, _ = value_BNMD.shape
    basis = "value, level_shapes and sampling_offsets"
    shape = (batch, queries, heads, levels, points)
    _check_tensor("attention_logits", logits, shape, value_BNMD, basis)
    if reference_points.dim() != 4 or reference_points.shape[-1] not in (2, 4):
        raise ValueError(
            "reference_points must have shape [B, Q, L, 2 or 4], "
            f"got {list(reference_points.shape)}"
        )
    shape_of_points = (batch, queries, levels, reference_points.shape[-1])
    _check_tensor("reference_points", reference_points, shape_of_points, value_BNMD, basis)
