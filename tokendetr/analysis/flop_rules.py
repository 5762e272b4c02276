"""Count the operations of operators by fvcore's convention.

A multiply-add is one operation, and element-wise work is free.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from fvcore.nn.jit_handles import get_shape
from torch import Tensor

from tokendetr.ops import ms_deform_attn_flops, packed_attention_flops

__all__ = ["RULES", "Rule", "flop_handles"]

Rule = Callable[[Sequence[Any], Any], int]
"""(arguments, first result) of an operator -> number of operations."""


def _convolution(args: Sequence[Any], output: Tensor) -> int:
    images, weight, transposed = args[0], args[1], args[6]
    return images.shape[0] * weight.numel() * prod((images if transposed else output).shape[2:])


def _product(args: Sequence[Any], output: Tensor) -> int:
    """Count ``mm``, ``bmm``, ``mv`` and ``dot``."""
    return args[0].numel() * (args[1].shape[-1] if args[1].dim() > 1 else 1)


def _added_product(args: Sequence[Any], output: Tensor) -> int:
    return _product(args[1:3], output)


def _attention(args: Sequence[Any], output: Tensor) -> int:
    """Count queries times keys, then weights times values."""
    query, key, value = args[:3]
    return query.numel() * key.shape[-2] + prod(query.shape[:-1]) * prod(value.shape[-2:])


def _batch_norm(args: Sequence[Any], output: Tensor) -> int:
    is_affine = args[1] is not None
    if len(args) > 5 and args[5] is True:
        return args[0].numel() * (5 if is_affine else 4)
    return args[0].numel() * (2 if is_affine else 1)


def _layer_norm(args: Sequence[Any], output: Tensor) -> int:
    return args[0].numel() * (5 if args[2] is not None else 4)


def _group_norm(args: Sequence[Any], output: Tensor) -> int:
    return args[0].numel() * (5 if args[1] is not None else 4)


def _each_input(args: Sequence[Any], output: Tensor) -> int:
    return args[0].numel()


def _each_output(args: Sequence[Any], output: Tensor) -> int:
    return output.numel()


def _four_corners(args: Sequence[Any], output: Tensor) -> int:
    return 4 * output.numel()


def _sampling(args: Sequence[Any], output: Tensor) -> int:
    locations = next(arg for arg in args if isinstance(arg, Tensor) and arg.dim() == 6)
    return ms_deform_attn_flops(locations.shape, args[0].shape[3])


def _packed_attention(args: Sequence[Any], output: Tensor) -> int:
    return packed_attention_flops(args[3], prod(args[0].shape[2:]))


RULES: dict[str, tuple[str, Rule]] = {
    "aten::convolution": ("conv", _convolution),
    "aten::mm": ("matmul", _product),
    "aten::bmm": ("matmul", _product),
    "aten::mv": ("matmul", _product),
    "aten::dot": ("matmul", _product),
    "aten::addmm": ("matmul", _added_product),
    "aten::baddbmm": ("matmul", _added_product),
    "aten::addbmm": ("matmul", _added_product),
    "aten::addmv": ("matmul", _added_product),
    "aten::native_batch_norm": ("batch_norm", _batch_norm),
    "aten::cudnn_batch_norm": ("batch_norm", _batch_norm),
    "aten::miopen_batch_norm": ("batch_norm", _batch_norm),
    "aten::_native_batch_norm_legit_no_training": ("batch_norm", _batch_norm),
    "aten::native_layer_norm": ("layer_norm", _layer_norm),
    "aten::native_group_norm": ("group_norm", _group_norm),
    "aten::upsample_nearest2d": ("upsample", _each_output),
    "aten::upsample_bilinear2d": ("upsample", _four_corners),
    "aten::_adaptive_avg_pool2d": ("adaptive_avg_pool", _each_input),
    "aten::grid_sampler_2d": ("deformable_sampling", _four_corners),
    "aten::cudnn_grid_sampler": ("deformable_sampling", _four_corners),
    "tokendetr::ms_deform_attn": ("deformable_sampling", _sampling),
    "tokendetr::ms_deform_attn_fused": ("deformable_sampling", _sampling),
    "tokendetr::packed_attention": ("matmul", _packed_attention),
    **{
        f"aten::_scaled_dot_product_{kind}": ("matmul", _attention)
        for kind in (
            "flash_attention",
            "flash_attention_for_cpu",
            "efficient_attention",
            "cudnn_attention",
            "fused_attention_overrideable",
        )
    },
}
"""Dispatched name of every counted operator -> its label and rule."""


def _plain_handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return ms_deform_attn_flops(get_shape(inputs[2]), get_shape(inputs[0])[3])


def _fused_handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return ms_deform_attn_flops(get_shape(inputs[3]), get_shape(inputs[0])[3])


def _packed_handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count every container as one full segment, as a traced graph has no segment lengths."""
    containers, slots, heads, width = get_shape(inputs[0])
    return 2 * containers * slots * slots * heads * width


def flop_handles() -> dict[str, Callable[[Sequence[Any], Sequence[Any]], int]]:
    """Return the rules for our operators for fvcore's ``set_op_handle``."""
    return {
        "tokendetr::ms_deform_attn": _plain_handle,
        "tokendetr::ms_deform_attn_fused": _fused_handle,
        "tokendetr::packed_attention": _packed_handle,
    }
