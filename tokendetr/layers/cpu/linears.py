"""Linear layers in CPU evaluation: weights packed once, activations fused.

PyTorch multiplies float32 matrices by MKL, which uses only half of the vector width of processors
that are not Intel's; oneDNN, which PyTorch includes for convolutions, uses all of it. In bfloat16
PyTorch calls oneDNN itself, but brings the weights into oneDNN's layout at every call, and an
activation is a pass of its own over the result.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokendetr.compat.torch_private import (
    has_forward_hooks,
    onednn_linear,
    onednn_packed_linear_weight,
)
from tokendetr.layers.cpu.cached import Cached
from tokendetr.layers.cpu.conditions import working_dtype

_PACKED_FOR_ROWS = 1024
"""Rows for which oneDNN chooses a layout; any number of rows can be multiplied."""

_Fused = tuple[str, list[Any], str]
"""An activation as oneDNN's arguments: name, numbers, algorithm."""

_NONE: _Fused = ("none", [], "")


class _Packed:
    """A linear layer with packed weights.

    Args:
        layer: the layer; its parameters are read at every call.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self._cached: Cached[tuple[Tensor, Tensor | None]] = Cached()

    def __call__(self, x: Tensor, dtype: torch.dtype, activation: _Fused = _NONE) -> Tensor:
        """Apply the layer and an activation in a dtype."""
        layer = self.layer
        weight, bias = self._cached.get(
            dtype, [layer.weight, layer.bias], lambda: self._pack(dtype)
        )
        output: Tensor = onednn_linear()(x.to(dtype), weight, bias, *activation)
        return output

    def _pack(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.layer.weight.detach().to(dtype), self.layer.bias
        pack = onednn_packed_linear_weight()
        if pack is not None and weight.numel():
            weight = pack(weight, _PACKED_FOR_ROWS)
        return weight, None if bias is None else bias.detach().to(dtype)


def _linear(packed: _Packed, x: Tensor) -> Tensor:
    """Apply a linear layer, by the fast form if possible."""
    layer = packed.layer
    dtype = working_dtype(x, layer.weight)
    return nn.Linear.forward(layer, x) if dtype is None else packed(x, dtype)


def _fused(activation: nn.Module) -> _Fused | None:
    """Return an activation as oneDNN's arguments, or None."""
    if type(activation) is nn.ReLU:
        return "relu", [], ""
    if type(activation) is nn.GELU:
        return "gelu", [], activation.approximate
    return None


def _linear_and_activation(sequence: nn.Sequential, packed: _Packed, x: Tensor) -> Tensor:
    """Apply a sequence that starts with a linear layer and its activation."""
    layer, activation, *others = sequence
    dtype = working_dtype(x, packed.layer.weight)
    fused = _fused(activation)
    if (
        dtype is None
        or fused is None
        or layer is not packed.layer
        or has_forward_hooks(layer)
        or has_forward_hooks(activation)
    ):
        return nn.Sequential.forward(sequence, x)
    x = packed(x, dtype, fused)
    for other in others:
        x = other(x)
    return x


def _is_plain(module: nn.Module) -> bool:
    """Return True if a module is a linear layer with its original ``forward``."""
    return type(module) is nn.Linear and "forward" not in vars(module)


def fast_linear(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the fast form of a linear layer's ``forward``, or None."""
    if onednn_linear() is None:
        return None
    if _is_plain(module):
        return partial(_linear, _Packed(cast(nn.Linear, module)))
    if type(module) is not nn.Sequential or len(module) < 2:
        return None
    layer, activation = module[0], module[1]
    if not _is_plain(layer) or _fused(activation) is None or "forward" in vars(activation):
        return None
    return partial(_linear_and_activation, module, _Packed(cast(nn.Linear, layer)))
