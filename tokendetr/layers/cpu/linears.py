"""Linear layers in CPU evaluation: weights packed once, activations fused.

PyTorch multiplies float32 matrices by MKL, which uses only half of the vector width of processors
that are not Intel's; oneDNN, which PyTorch includes for convolutions, uses all of it. In bfloat16
PyTorch calls oneDNN itself, but brings the weights into oneDNN's layout at every call, and an
activation is a pass of its own over the result. A call of oneDNN takes longer than one of MKL
before it multiplies: small products in float32 stay PyTorch's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokendetr.compat.torch_private import (
    has_forward_hooks,
    onednn_linear,
    onednn_linear_and_sum,
    onednn_packed_linear_weight,
)
from tokendetr.layers.cached import Cached
from tokendetr.layers.cpu.conditions import mkl_uses_all_vectors, working_dtype

_PACKED_FOR_ROWS = 1024
"""Rows for which oneDNN chooses a layout; any number of rows can be multiplied."""

LEAST_PRODUCTS = 1 << 24 if mkl_uses_all_vectors() else 1 << 20
"""Multiplications of a float32 product from which oneDNN saves the time that its call takes."""

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
        weight, bias = self._parameters(dtype)
        output: Tensor = onednn_linear()(x.to(dtype), weight, bias, *activation)
        return output

    def and_sum(self, x: Tensor, residual: Tensor, dtype: torch.dtype) -> Tensor:
        """Apply the layer in a dtype and add a tensor of the output's shape."""
        weight, bias = self._parameters(dtype)
        sums = onednn_linear_and_sum()
        output: Tensor = sums(x.to(dtype), residual.to(dtype), weight, bias, "add")
        return output

    def _parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return packed weights and bias in a dtype."""
        parameters = [self.layer.weight, self.layer.bias]
        return self._cached.get(dtype, parameters, lambda: self._pack(dtype))

    def _pack(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.layer.weight.detach().to(dtype), self.layer.bias
        pack = onednn_packed_linear_weight()
        if pack is not None and weight.numel():
            weight = pack(weight, _PACKED_FOR_ROWS)
        return weight, None if bias is None else bias.detach().to(dtype)


class _Linear:
    """The fast form of a linear layer.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.packed = _Packed(layer)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer, by the fast form if possible and if it pays."""
        dtype = self.working_dtype(x)
        return nn.Linear.forward(self.packed.layer, x) if dtype is None else self.packed(x, dtype)

    def working_dtype(self, x: Tensor) -> torch.dtype | None:
        """Return the dtype in which the fast form computes; None if the layer's own form runs."""
        layer = self.packed.layer
        if (
            not torch.compiler.is_compiling()
            and x.dtype == torch.float32
            and x.numel() * layer.out_features < LEAST_PRODUCTS
            and not torch.is_autocast_enabled("cpu")
        ):
            return None
        return working_dtype(x, layer.weight)


def _form_of(layer: nn.Module) -> _Linear | None:
    """Return a linear layer's fast form; None for other layers, and where hooks see the result."""
    form = None if has_forward_hooks(layer) else vars(layer).get("forward")
    return form if isinstance(form, _Linear) else None


def linear_and_sum(layer: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """Return ``layer(x) + residual``, added while the product is in the cache if possible.

    Args:
        layer: any module; the sum is fused if it is a linear layer with a fast form.
        x: its input.
        residual: what is added.

    Returns:
        The sum, in bfloat16 if the fast form computes in it.
    """
    form = _form_of(layer)
    if form is not None:
        linear = form.packed.layer
        dtype = form.working_dtype(x)
        fits = residual.shape == (*x.shape[:-1], linear.out_features)
        if dtype is not None and fits and residual.dtype in (dtype, torch.float32):
            return form.packed.and_sum(x, residual, dtype)
    sum_: Tensor = layer(x) + residual
    return sum_


def linear_and_activation(layer: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """Return ``activation(layer(x))``, ReLU and GELU computed inside the product if possible."""
    form, fused = _form_of(layer), _fused(activation)
    if form is not None and fused is not None and not has_forward_hooks(activation):
        dtype = form.working_dtype(x)
        if dtype is not None:
            return form.packed(x, dtype, fused)
    output: Tensor = activation(layer(x))
    return output


def _fused(activation: nn.Module) -> _Fused | None:
    """Return an activation as oneDNN's arguments, or None."""
    if "forward" in vars(activation):
        return None
    if type(activation) is nn.ReLU:
        return "relu", [], ""
    if type(activation) is nn.GELU:
        return "gelu", [], activation.approximate
    return None


def _sequence(sequence: nn.Sequential, x: Tensor) -> Tensor:
    """Apply a sequence, each activation together with the linear layer before it."""
    layers = list(sequence)
    while layers:
        layer = layers.pop(0)
        if layers and type(layer) is nn.Linear and _fused(layers[0]) is not None:
            x = linear_and_activation(layer, layers.pop(0), x)
        else:
            x = layer(x)
    return x


def _is_plain(module: nn.Module) -> bool:
    """Return True if a module is a linear layer with its original ``forward``."""
    return type(module) is nn.Linear and "forward" not in vars(module)


def is_linear(module: nn.Module) -> bool:
    """Return True if a product with a module's weights gives what a call of the module gives."""
    own = vars(module).get("forward")
    return (
        type(module).forward is nn.Linear.forward
        and (own is None or isinstance(own, _Linear))
        and not has_forward_hooks(module)
    )


def fast_linear(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the fast form of a linear layer's ``forward``, or None."""
    if onednn_linear() is None:
        return None
    if _is_plain(module):
        return _Linear(cast(nn.Linear, module))
    if type(module) is not nn.Sequential:
        return None
    pairs = zip(module, list(module)[1:], strict=False)
    fuses = any(_is_plain(layer) and _fused(following) is not None for layer, following in pairs)
    return partial(_sequence, module) if fuses else None
