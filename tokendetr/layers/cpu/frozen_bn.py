"""Convolutions that do the work of the frozen norms behind them, for evaluation on CPUs.

A frozen batch norm is a scale and a shift per channel. Inside :func:`folded_norms` the scale goes
into the convolution's weights and the shift becomes its bias, which spares one pass over every
feature map. Weights are folded anew at each call: they are small beside feature maps, and nothing
can go stale when a checkpoint is loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn


def _forward(conv: Conv2d, norm: FrozenBatchNorm2d, x: Tensor) -> Tensor:
    """Do what the convolution and its frozen norm do."""
    scale_C = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift_C = norm.bias - norm.running_mean * scale_C
    if conv.bias is not None:
        shift_C = shift_C + conv.bias * scale_C
    weight = conv.weight * scale_C[:, None, None, None]
    # `_conv_forward` is where every convolution class of PyTorch keeps padding modes and groups.
    x = conv._conv_forward(x, weight, shift_C)
    return x if conv.activation is None else conv.activation(x)


def _frozen_pairs(model: nn.Module) -> list[tuple[Conv2d, FrozenBatchNorm2d]]:
    """Return detectron2's own convolutions with frozen norms that nobody listens to."""
    return [
        (module, module.norm)
        for module in model.modules()
        if type(module) is Conv2d
        and type(module.norm) is FrozenBatchNorm2d
        and "forward" not in vars(module)
        and not (module.norm._forward_hooks or module.norm._forward_pre_hooks)
    ]


def evaluates_on_cpu(model: nn.Module) -> bool:
    """Return whether a call now is one without gradients on a CPU in full precision, and nobody
    traces its operators."""
    parameter = next(model.parameters(), None)
    return (
        parameter is not None
        and parameter.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


@contextmanager
def folded_norms(model: nn.Module) -> Iterator[None]:
    """Run the frozen norms of a model as part of their convolutions inside the ``with`` block.

    Only for calls without gradients on a CPU in full precision; otherwise, and for norms with hooks
    (those that count operations, say), nothing changes. Results differ by rounding, about 1e-6 of
    their size.

    Args:
        model: with ``detectron2.layers.Conv2d`` in it.
    """
    if not evaluates_on_cpu(model):
        yield
        return
    pairs = _frozen_pairs(model)
    for conv, norm in pairs:
        conv.forward = partial(_forward, conv, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv, _ in pairs:
            vars(conv).pop("forward", None)
