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
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F

from tokendetr.compat.torch_private import (
    has_forward_hooks,
    onednn_convolution,
    onednn_convolution_and_sum,
    onednn_convolution_onto,
    onednn_packed_convolution_weight,
)
from tokendetr.layers.cached import Cached
from tokendetr.layers.cpu.conditions import working_dtype

_LAST = torch.channels_last
_BLOCKS = (BasicBlock, BottleneckBlock)


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

    def is_silent(self) -> bool:
        """Return True if no hook sees the convolution, and its norm can be folded in."""
        return not has_forward_hooks(self.conv) and _folds(self.norm)

    def __call__(self, x_BCHW: Tensor, dtype: torch.dtype, activation: str) -> Tensor:
        """Apply the convolution and an activation ("none" or "relu")."""
        x_BCHW = x_BCHW.to(dtype, memory_format=_LAST)
        weight, bias = self.parameters(x_BCHW)
        settings = _settings(self.conv)
        return onednn_convolution()(x_BCHW, weight, bias, *settings, activation, [], "")

    def parameters(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return folded weights, in oneDNN's layout, and bias in an input's dtype."""
        norm = self.norm
        tensors = [self.conv.weight, self.conv.bias]
        if norm is not None:
            tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return self._cached.get(x_BCHW.dtype, tensors, lambda: self._packed(x_BCHW))

    def _packed(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        weight, bias = _fold(self.conv, self.norm, x_BCHW.dtype)
        pack = onednn_packed_convolution_weight()
        if pack is None:
            return weight, bias
        # The layout suits inputs of about this size, and serves all.
        return pack(weight, *_settings(self.conv), list(x_BCHW.shape)), bias


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


def _stem(stem: Any, folded: _Folded, x: Tensor) -> Tensor:
    """Apply a ResNet's stem, by the fast form if possible."""
    conv = folded.conv
    dtype = working_dtype(x, conv.weight)
    if dtype is None or x.dim() != 4 or conv is not stem.conv1 or not folded.is_silent():
        output: Tensor = type(stem).forward(stem, x)
        return output
    return F.max_pool2d(folded(x, dtype, "relu"), kernel_size=3, stride=2, padding=1)


def _convolutions(block: nn.Module) -> list[Any]:
    """Return the convolutions of a residual block in their order, the shortcut's last."""
    names = ("conv1", "conv2", "conv3", "shortcut")
    return [conv for name in names if (conv := getattr(block, name, None)) is not None]


class _Block:
    """The fast form of a residual block.

    Args:
        block: the block.
    """

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._all = [_Folded(conv) for conv in _convolutions(block)]

    def __call__(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """Apply the block, by the fast form if possible; ``overwrite`` lets it do so in ``x``."""
        block: Any = self._block
        dtype = working_dtype(x, self._all[0].conv.weight)
        are_those = [folded.conv for folded in self._all] == _convolutions(block)
        if dtype is None or not are_those or not all(folded.is_silent() for folded in self._all):
            output: Tensor = type(block).forward(block, x)
            return output
        own, out = overwrite, x.to(dtype, memory_format=_LAST)
        *main, last = self._all
        x = out
        if block.shortcut is not None:
            own, x = True, last(x, dtype, "none")
            *main, last = main
        for folded in main:
            out = folded(out, dtype, "relu")
        return _add_and_relu(last, out, x, overwrite=own)


def _add_and_relu(folded: _Folded, x: Tensor, residual: Tensor, *, overwrite: bool) -> Tensor:
    """Return relu(convolution + residual), written over the residual if that is allowed."""
    weight, bias = folded.parameters(x)
    settings = _settings(folded.conv)
    onto = onednn_convolution_onto() if overwrite else None
    if onto is None:
        sums = onednn_convolution_and_sum()
        return sums(x, residual, weight, bias, *settings, "add", 1.0, "relu", [], "")
    return onto(residual, x, weight, bias, *settings, "add", 1.0, "relu", [], "")


def _stage(stage: nn.Sequential, x: Tensor) -> Tensor:
    """Apply a sequence of residual blocks; each writes over the output of the one before it.

    The system clears every page of fresh memory, which can take longer than a convolution.
    """
    only_here = False  # nothing else refers to x
    for block in stage:
        form = None if has_forward_hooks(block) else vars(block).get("forward")
        fast = form if isinstance(form, _Block) else None
        x = block(x) if fast is None else fast(x, overwrite=only_here)
        only_here = fast is not None
    return x


def _is_plain(conv: Any) -> bool:
    """Return True if a convolution has zero padding of fixed size and its original ``forward``."""
    return (
        type(conv) in (Conv2d, nn.Conv2d)
        and "forward" not in vars(conv)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def fast_convolution(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the fast form of a module's ``forward``, or None if there is none.

    Modules are convolutions, the stem of a ResNet, residual blocks and sequences of them.
    """
    if onednn_convolution() is None:
        return None
    if _is_plain(module):
        return partial(_convolution, _Folded(cast(nn.Conv2d, module)))
    if type(module) is BasicStem:
        conv: Any = module.conv1
        has_own_form = _is_plain(conv) and getattr(conv, "activation", None) is None
        return partial(_stem, module, _Folded(conv)) if has_own_form else None
    if type(module) is nn.Sequential and all(type(each) in _BLOCKS for each in module):
        return partial(_stage, module) if len(module) else None
    if type(module) not in _BLOCKS:
        return None
    every = _convolutions(module)
    if not all(_is_plain(conv) and getattr(conv, "activation", None) is None for conv in every):
        return None
    return _Block(module)
