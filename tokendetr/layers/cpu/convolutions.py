"""Convolutions in CPU evaluation: folded norms, channels last, fused residual sums.

A batch norm with fixed statistics is a scale and a shift per channel: the scale is folded into the
convolution's weights, the shift into its bias. Channels last is oneDNN's own layout, which saves
two copies per convolution, and several times their cost in bfloat16. ReLU and the residual sum are
computed while a block of the output is in the cache.

Shapes: B image, C channel, H height, W width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from tokendetr.compat.torch_private import (
    has_forward_hooks,
    onednn_convolution,
    onednn_convolution_and_sum,
)
from tokendetr.layers.cpu.cached import Cached
from tokendetr.layers.cpu.conditions import working_dtype

_LAST = torch.channels_last


def _folds(norm: Any) -> bool:
    """Return True if a norm is a scale and a shift that do not depend on the input."""
    if norm is None:
        return True
    if has_forward_hooks(norm):
        return False
    if type(norm) is FrozenBatchNorm2d:
        return True
    return type(norm) is nn.BatchNorm2d and not norm.training and norm.running_mean is not None


def _fold(conv: nn.Conv2d, norm: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return weights (channels last) and bias of a convolution with its norm folded in."""
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


class _Folded:
    """A convolution with its norm folded in, cached until one of their tensors changes.

    Args:
        conv: the convolution; its ``norm``, if it has one, is read at every call.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self._cached: Cached[tuple[Tensor, Tensor | None]] = Cached()

    @property
    def norm(self) -> Any:
        """The norm that follows the convolution, or None."""
        return getattr(self.conv, "norm", None)

    def __call__(self, x_BCHW: Tensor, dtype: torch.dtype, activation: str) -> Tensor:
        """Apply the convolution and an activation ("none" or "relu")."""
        weight, bias = self.parameters(dtype)
        x_BCHW = x_BCHW.to(dtype, memory_format=_LAST)
        settings = _settings(self.conv)
        return onednn_convolution()(x_BCHW, weight, bias, *settings, activation, [], "")

    def parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return folded weights and bias in a dtype."""
        norm = self.norm
        tensors = [self.conv.weight, self.conv.bias]
        if norm is not None:
            tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return self._cached.get(dtype, tensors, lambda: _fold(self.conv, norm, dtype))


def _settings(conv: nn.Conv2d) -> tuple[Any, ...]:
    return conv.padding, conv.stride, conv.dilation, conv.groups


def _convolution(folded: _Folded, x: Tensor) -> Tensor:
    """Apply a convolution, its norm and its activation, by the fast form if possible."""
    conv = folded.conv
    dtype = working_dtype(x, conv.weight)
    if dtype is None or x.dim() != 4 or not _folds(folded.norm):
        return type(conv).forward(conv, x)
    x = folded(x, dtype, "none")
    activation = getattr(conv, "activation", None)
    return x if activation is None else activation(x)


def _convolutions(block: nn.Module) -> list[Any]:
    """Return the convolutions of a residual block in their order."""
    names = ("conv1", "conv2", "conv3")
    return [conv for name in names if (conv := getattr(block, name, None)) is not None]


def _block(block: Any, main: list[_Folded], shortcut: _Folded | None, x: Tensor) -> Tensor:
    """Apply a residual block, by the fast form if possible."""
    dtype = working_dtype(x, main[0].conv.weight)
    every = main if shortcut is None else [*main, shortcut]
    if dtype is None or any(has_forward_hooks(f.conv) or not _folds(f.norm) for f in every):
        return type(block).forward(block, x)
    x = x.to(dtype, memory_format=_LAST)
    out = x
    for folded in main[:-1]:
        out = folded(out, dtype, "relu")
    residual = x if shortcut is None else shortcut(x, dtype, "none")
    weight, bias = main[-1].parameters(dtype)
    settings = _settings(main[-1].conv)
    return onednn_convolution_and_sum()(
        out, residual, weight, bias, *settings, "add", 1.0, "relu", [], ""
    )


def _is_plain(conv: Any) -> bool:
    """Return True if a convolution has zero padding of fixed size and its original ``forward``."""
    return (
        type(conv) in (Conv2d, nn.Conv2d)
        and "forward" not in vars(conv)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def fast_convolution(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the fast form of a convolution's or a residual block's ``forward``, or None."""
    if onednn_convolution() is None:
        return None
    if _is_plain(module):
        return partial(_convolution, _Folded(cast(nn.Conv2d, module)))
    if type(module) not in (BasicBlock, BottleneckBlock):
        return None
    shortcut: Any = module.shortcut
    main = _convolutions(module)
    every = main if shortcut is None else [*main, shortcut]
    if not all(_is_plain(conv) and getattr(conv, "activation", None) is None for conv in every):
        return None
    folded = None if shortcut is None else _Folded(shortcut)
    return partial(_block, module, [_Folded(conv) for conv in main], folded)
