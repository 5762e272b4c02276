"""Python registrations of packed attention: fake kernels, autograd, autocast, FLOP formulas.

Imported after the library is loaded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tokendetr.ops.autocast import DEVICE_TYPES, low, wide, without_autocast
from tokendetr.ops.kernels import call_kernel
from tokendetr.ops.packed_attention.checks import check_packed
from tokendetr.ops.packed_attention.flops import packed_attention_flops

_NAME = "tokendetr::packed_attention"


@torch.library.register_fake(_NAME)
def _fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment: Tensor,
    scale: float,
    position: Tensor | None,
    bias_table: Tensor | None,
    key_bias: Tensor | None,
) -> Tensor:
    check_packed(query, key, value, segment, position, bias_table, key_bias)
    return query.new_empty(query.shape)


@torch.library.register_fake(f"{_NAME}_backward")
def _backward_fake(grad_output: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    *operands, wants_table_gradient, wants_key_bias_gradient = inputs
    query = _fake(*operands)
    bias_table, key_bias = operands[-2:]
    wanted = ((bias_table, wants_table_gradient), (key_bias, wants_key_bias_gradient))
    biases = (
        bias.new_empty(bias.shape) if wants and bias is not None else query.new_empty(0)
        for bias, wants in wanted
    )
    return query, query.clone(), query.clone(), *biases


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, segment, scale, position, bias_table, key_bias = inputs
    ctx.save_for_backward(query, key, value, segment, position, bias_table, key_bias)
    ctx.scale = scale


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, segment, position, bias_table, key_bias = ctx.saved_tensors
    wants_table, wants_key_bias = ctx.needs_input_grad[6:8]
    gradients = call_kernel(
        torch.ops.tokendetr.packed_attention_backward,
        grad_output,
        query,
        key,
        value,
        segment,
        ctx.scale,
        position,
        bias_table,
        key_bias,
        wants_table,
        wants_key_bias,
    )
    to_table = gradients[3] if wants_table else None
    to_key_bias = gradients[4] if wants_key_bias else None
    return *gradients[:3], None, None, None, to_table, to_key_bias


torch.library.register_autograd(_NAME, _backward, setup_context=_save)


# Under autocast queries, keys and values have low precision; biases and sums are float32.
def _autocast(kind: str) -> Callable[..., Tensor]:
    def run(*inputs: Any) -> Tensor:
        *tensors, segment, scale, position, bias_table, key_bias = inputs
        tensors = [low(x, kind) for x in tensors]
        biases = (x if x is None else wide(x, kind) for x in (bias_table, key_bias))
        with without_autocast(kind):
            return torch.ops.tokendetr.packed_attention(*tensors, segment, scale, position, *biases)

    return run


_LIBRARY = torch.library.Library("tokendetr", "IMPL")
for _kind in DEVICE_TYPES:
    _LIBRARY.impl("packed_attention", _autocast(_kind), f"Autocast{_kind.upper()}")


# PyTorch counts a multiply-add as two operations. The forward has two matrix products; the backward
# recomputes the logits and has four more.
def _forward_flop(
    query: Tensor, key: Tensor, value: Tensor, segment: Tensor, *args: Any, **kwargs: Any
) -> int:
    return 2 * packed_attention_flops(segment, query.shape[2] * query.shape[3])


def _backward_flop(grad_output: Tensor, *args: Any, **kwargs: Any) -> int:
    return 5 * _forward_flop(*args) // 2


register_flop_formula(torch.ops.tokendetr.packed_attention, get_raw=True)(_forward_flop)
register_flop_formula(torch.ops.tokendetr.packed_attention_backward, get_raw=True)(_backward_flop)
