"""Floating point operations, activations and parameters of models with detectron2's inputs."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import fvcore.nn
import torch
from detectron2.export import TracingAdapter
from fvcore.nn import activation_count, flop_count, parameter_count, parameter_count_table
from torch import nn

__all__ = [
    "FlopCountAnalysis",
    "activation_count_operators",
    "find_unused_parameters",
    "flop_count_operators",
    "parameter_count",
    "parameter_count_table",
]

_IGNORED_OPS = {
    "aten::add",
    "aten::add_",
    "aten::argmax",
    "aten::argsort",
    "aten::batch_norm",
    "aten::constant_pad_nd",
    "aten::div",
    "aten::div_",
    "aten::exp",
    "aten::log2",
    "aten::max_pool2d",
    "aten::meshgrid",
    "aten::mul",
    "aten::mul_",
    "aten::neg",
    "aten::nonzero_numpy",
    "aten::reciprocal",
    "aten::repeat_interleave",
    "aten::rsub",
    "aten::sigmoid",
    "aten::sigmoid_",
    "aten::softmax",
    "aten::sort",
    "aten::sqrt",
    "aten::sub",
    "torchvision::nms",
}
"""Operators that count as free."""


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's operation count for nested inputs; a multiply-add is one operation.

    Args:
        model: the model, in evaluation mode for a deterministic result.
        inputs: arguments of the model: one, or a tuple.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        wrapper = TracingAdapter(model, inputs, allow_non_tensor=True)
        super().__init__(wrapper, wrapper.flattened_inputs)
        self.set_op_handle(**dict.fromkeys(_IGNORED_OPS))


class _ActivationCountAnalysis(fvcore.nn.ActivationCountAnalysis):
    """fvcore's activation count for models with nested inputs.

    Args:
        model: the model, in evaluation mode for a deterministic result.
        inputs: arguments of the model: one, or a tuple.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        wrapper = TracingAdapter(model, inputs, allow_non_tensor=True)
        super().__init__(wrapper, wrapper.flattened_inputs)


def flop_count_operators(model: nn.Module, inputs: list[dict[str, Any]]) -> defaultdict[str, float]:
    """Return the operations in units of 10^9 by operator; the model is run in evaluation mode."""
    return _count(model, inputs, flop_count, supported_ops=dict.fromkeys(_IGNORED_OPS, _free))


def activation_count_operators(
    model: nn.Module, inputs: list[dict[str, Any]], **kwargs: Any
) -> defaultdict[str, float]:
    """Return the activations in units of 10^6 by operator; the model is run in evaluation mode."""
    return _count(model, inputs, activation_count, **kwargs)


def _free(inputs: Any, outputs: Any) -> float:
    return 0.0


def _count(
    model: nn.Module, inputs: list[dict[str, Any]], counter: Any, **kwargs: Any
) -> defaultdict[str, float]:
    training = model.training
    model.eval()
    try:
        wrapper = TracingAdapter(model, inputs, allow_non_tensor=True)
        counted, _ = counter(wrapper, wrapper.flattened_inputs, **kwargs)
    finally:
        model.train(training)
    return defaultdict(float, counted)


def find_unused_parameters(model: nn.Module, inputs: Any) -> list[str]:
    """Return the names of parameters without a gradient from the model's training losses.

    Args:
        model: a model in training mode that returns a loss, or a dict of losses.
        inputs: its argument.
    """
    assert model.training
    for parameter in model.parameters():
        parameter.grad = None
    arguments: Iterable[Any] = inputs if isinstance(inputs, tuple) else (inputs,)
    losses = model(*arguments)
    total = losses if isinstance(losses, torch.Tensor) else sum(losses.values())
    total.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    for parameter in model.parameters():
        parameter.grad = None
    return unused
