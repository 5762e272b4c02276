"""Feed-forward networks and heads in CPU evaluation.

Residuals are added, and activations computed, inside the products.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from detrex.layers import FFN, MLP
from torch import Tensor, nn

from tokendetr.compat.torch_private import has_forward_hooks
from tokendetr.layers.cpu.linears import linear_and_activation, linear_and_sum


def _feed_forward(ffn: Any, x: Tensor, identity: Tensor | None = None) -> Tensor:
    """Apply a feed-forward network and add its residual."""
    *hidden, last, dropout = ffn.layers
    if (
        not ffn.add_identity
        or dropout.training
        or has_forward_hooks(dropout)
        or has_forward_hooks(ffn.layers)
    ):
        output: Tensor = type(ffn).forward(ffn, x, identity)
        return output
    residual = x if identity is None else identity
    for layer in hidden:
        x = layer(x)
    return linear_and_sum(last, x, residual)


def _perceptron(mlp: Any, activation: nn.ReLU, x: Tensor) -> Tensor:
    """Apply linear layers with ReLU between them."""
    *hidden, last = mlp.layers
    for layer in hidden:
        x = linear_and_activation(layer, activation, x)
    output: Tensor = last(x)
    return output


def fast_feed_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    """Return the fast form of detrex's ``FFN`` or ``MLP``, or None for other modules."""
    if type(module) is MLP:
        return partial(_perceptron, module, nn.ReLU())
    if type(module) is not FFN:
        return None
    layers = module.layers
    ends = [type(layer) for layer in layers][-2:] if type(layers) is nn.Sequential else []
    return partial(_feed_forward, module) if ends == [nn.Linear, nn.Dropout] else None
