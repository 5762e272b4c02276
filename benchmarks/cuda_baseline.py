"""The one-thread-per-channel CUDA kernel as an autograd function, compiled at the first use."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.cpp_extension import load


@functools.cache
def _library() -> Any:
    folder = Path(__file__).with_name("cuda")
    sources = [str(folder / name) for name in ("baseline.cpp", "baseline.cu")]
    load("plain_ms_deform_attn", sources, extra_cuda_cflags=["-O3"], is_python_module=False)
    return torch.ops.plain_ms_deform_attn


class _Baseline(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        return _library().forward(value, shapes, locations, weights)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        to_value, to_locations, to_weights = _library().backward(
            grad_outputs[0], value, ctx.shapes, locations, weights
        )
        return to_value, None, to_locations, to_weights


def ms_deform_attn_baseline(
    value_BNMD: Tensor,
    level_shapes: tuple[tuple[int, int], ...],
    sampling_locations_BQMLP2: Tensor,
    attention_weights_BQMLP: Tensor,
) -> Tensor:
    """Compute what ``tokendetr.ops.ms_deform_attn`` does; half precision by way of float32."""
    flat = [size for pair in level_shapes for size in pair]
    output = _Baseline.apply(
        value_BNMD.float(), flat, sampling_locations_BQMLP2, attention_weights_BQMLP
    )
    return output.to(value_BNMD.dtype)
