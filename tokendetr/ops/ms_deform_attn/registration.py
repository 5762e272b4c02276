"""Python registrations of the compiled operators: fake kernels, autograd, autocast, FLOP formulas.

Imported after the library is loaded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tokendetr.ops.autocast import DEVICE_TYPES, low, wide, without_autocast
from tokendetr.ops.kernels import call_kernel
from tokendetr.ops.ms_deform_attn import checks
from tokendetr.ops.ms_deform_attn.flops import ms_deform_attn_flops

_PLAIN = "tokendetr::ms_deform_attn"
_FUSED = "tokendetr::ms_deform_attn_fused"


def _fake_output(value: Tensor, locations: Tensor) -> Tensor:
    batch, _, heads, width = value.shape
    return value.new_empty(batch, locations.shape[1], heads * width)


@torch.library.register_fake(_PLAIN)
def _plain_fake(
    value: Tensor, level_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    checks.check_plain(value, level_shapes, locations, weights)
    return _fake_output(value, locations)


@torch.library.register_fake(_FUSED)
def _fused_fake(
    value: Tensor,
    level_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    checks.check_fused(value, level_shapes, reference_points, offsets, logits)
    return _fake_output(value, offsets)


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


@torch.library.register_fake(f"{_PLAIN}_backward")
def _plain_backward_fake(
    grad_output: Tensor,
    value: Tensor,
    level_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.check_plain(value, level_shapes, locations, weights)
    return _contiguous_like(value), _contiguous_like(locations), _contiguous_like(weights)


@torch.library.register_fake(f"{_FUSED}_backward")
def _fused_backward_fake(
    grad_output: Tensor,
    value: Tensor,
    level_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    wants_reference_gradient: bool,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checks.check_fused(value, level_shapes, reference_points, offsets, logits)
    reference = (
        _contiguous_like(reference_points)
        if wants_reference_gradient
        else reference_points.new_empty(0)
    )
    return _contiguous_like(value), reference, _contiguous_like(offsets), _contiguous_like(logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, level_shapes, *coordinates = inputs
    ctx.save_for_backward(value, *coordinates)
    ctx.level_shapes = level_shapes


def _plain_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = call_kernel(
        torch.ops.tokendetr.ms_deform_attn_backward,
        grad_output,
        value,
        ctx.level_shapes,
        locations,
        weights,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_value, None, grad_locations, grad_weights


def _fused_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, reference_points, offsets, logits = ctx.saved_tensors
    wants_reference = ctx.needs_input_grad[2]
    grad_value, grad_reference, grad_offsets, grad_logits = call_kernel(
        torch.ops.tokendetr.ms_deform_attn_fused_backward,
        grad_output,
        value,
        ctx.level_shapes,
        reference_points,
        offsets,
        logits,
        wants_reference,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_value, None, grad_reference if wants_reference else None, grad_offsets, grad_logits


torch.library.register_autograd(_PLAIN, _plain_backward, setup_context=_save)
torch.library.register_autograd(_FUSED, _fused_backward, setup_context=_save)


# Under autocast only values have low precision; coordinates, weights and sums are float32.
def _autocast(kind: str, name: str) -> Callable[..., Tensor]:
    operator = getattr(torch.ops.tokendetr, name)

    def run(value: Tensor, level_shapes: Sequence[int], *coordinates: Tensor) -> Tensor:
        with without_autocast(kind):
            return operator(low(value, kind), level_shapes, *(wide(x, kind) for x in coordinates))

    return run


_LIBRARY = torch.library.Library("tokendetr", "IMPL")
for _kind in DEVICE_TYPES:
    for _name in ("ms_deform_attn", "ms_deform_attn_fused"):
        _LIBRARY.impl(_name, _autocast(_kind, _name), f"Autocast{_kind.upper()}")


def _forward_flop(value_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
    # PyTorch counts a multiply-add as two operations.
    locations_shape = next(shape for shape in args if len(shape) == 6)
    return 2 * ms_deform_attn_flops(locations_shape, value_shape[3])


def _backward_flop(
    grad_shape: Sequence[int], value_shape: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    return 2 * _forward_flop(value_shape, *args)


for _name in ("ms_deform_attn", "ms_deform_attn_fused"):
    register_flop_formula(getattr(torch.ops.tokendetr, _name))(_forward_flop)
    register_flop_formula(getattr(torch.ops.tokendetr, f"{_name}_backward"))(_backward_flop)
