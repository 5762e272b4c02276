"""Convolutions in evaluation on CPUs: norms folded in, channels last, residual sums inside.

A batch norm with fixed statistics is a scale and a shift per channel: the scale goes into the
convolution's weights, the shift becomes its bias. With channels last oneDNN reads and writes its
own layout, which spares two copies per convolution, and several times their cost in bfloat16. ReLU
and the sum with a residual happen while a block of the output is in the cache.

Shapes: B image, C channel, H height, W width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from tokendetr.compat.torch_private import (
    has_forward_hooks,
    onednn_convolution,
    onednn_convolution_and_sum,
)
from tokendetr.layers.cpu.conditions import working_dtype

_LAST = torch.channels_last


def _folds(norm: Any) -> bool:
    """Return whether a norm is a scale and a shift that do not depend on the input."""
    if norm is None:
        return True
    if has_forward_hooks(norm):
        return False
    if type(norm) is FrozenBatchNorm2d:
        return True
    return type(norm) is nn.BatchNorm2d and not norm.training and norm.running_mean is not None


def _folded(conv: nn.Conv2d, norm: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return weights and bias of a convolution and its norm.

    They are folded in each call: they are small beside feature maps, and nothing can go stale when
    a checkpoint is loaded.
    """
    weight, bias = conv.weight, conv.bias
    if norm is not None:
        scale_C = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale_C = norm.weight * scale_C
        shift_C = -norm.running_mean * scale_C
        if norm.bias is not None:
            shift_C = norm.bias + shift_C
        bias = shift_C if bias is None else shift_C + bias * scale_C
        weight = weight * scale_C[:, None, None, None]
    weight = weight.to(dtype, memory_format=_LAST)
    return weight, None if bias is None else bias.to(dtype)


def _settings(conv: nn.Conv2d) -> tuple[Any, ...]:
    return conv.padding, conv.stride, conv.dilation, conv.groups


def _run(conv: nn.Conv2d, x_BCHW: Tensor, dtype: torch.dtype, activation: str) -> Tensor:
    weight, bias = _folded(conv, getattr(conv, "norm", None), dtype)
    x_BCHW = x_BCHW.to(dtype, memory_format=_LAST)
    return onednn_convolution()(x_BCHW, weight, bias, *_settings(conv), activation, [], "")


def _convolution(conv: Any, x: Tensor) -> Tensor:
    """Do what a convolution, its norm and its activation do."""
    dtype = working_dtype(x, conv.weight)
    if dtype is None or x.dim() != 4 or not _folds(getattr(conv, "norm", None)):
        return type(conv).forward(conv, x)
    x = _run(conv, x, dtype, "none")
    activation = getattr(conv, "activation", None)
    return x if activation is None else activation(x)


def _convolutions(block: nn.Module) -> list[Any]:
    names = ("conv1", "conv2", "conv3", "shortcut")
    return [conv for name in names if (conv := getattr(block, name, None)) is not None]


def _block(block: Any, x: Tensor) -> Tensor:
    """Do what a residual block does."""
    convs = _convolutions(block)
    dtype = working_dtype(x, convs[0].weight)
    if dtype is None or any(has_forward_hooks(c) or not _folds(c.norm) for c in convs):
        return type(block).forward(block, x)
    x = x.to(dtype, memory_format=_LAST)
    if block.shortcut is not None:
        convs.pop()
    out = x
    for conv in convs[:-1]:
        out = _run(conv, out, dtype, "relu")
    residual = x if block.shortcut is None else _run(block.shortcut, x, dtype, "none")
    weight, bias = _folded(convs[-1], convs[-1].norm, dtype)
    return onednn_convolution_and_sum()(
        out, residual, weight, bias, *_settings(convs[-1]), "add", 1.0, "relu", [], ""
    )


def _is_plain(conv: nn.Module) -> bool:
    """Return whether a convolution pads with a fixed number of zeros and is nobody else's."""
    return (
        type(conv) in (Conv2d, nn.Conv2d)
        and "forward" not in vars(conv)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def fast_convolution(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the faster form of a convolution's or a residual block's ``forward``, or None."""
    if onednn_convolution() is None:
        return None
    if _is_plain(module):
        return partial(_convolution, module)
    if type(module) in (BasicBlock, BottleneckBlock) and all(
        _is_plain(conv) and getattr(conv, "activation", None) is None
        for conv in _convolutions(module)
    ):
        return partial(_block, module)
    return None
