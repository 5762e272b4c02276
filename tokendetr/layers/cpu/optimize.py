"""Speed up evaluation on CPUs: linear layers through oneDNN, frozen norms inside convolutions.

PyTorch multiplies float32 matrices with MKL, which leaves half of a processor's vector width unused
on other makers' processors; oneDNN, which PyTorch carries for convolutions, does not. A frozen
batch norm is a scale and a shift per channel: the scale goes into the convolution's weights and the
shift becomes its bias, which spares one pass over every feature map.
"""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from tokendetr.compat.torch_private import (
    convolve,
    current_dispatch_mode,
    has_forward_hooks,
    onednn_linear,
)

__all__ = ["Optimized", "optimize"]


def _evaluates_on_cpu(tensor: Tensor) -> bool:
    """Return whether a call is one without gradients on a CPU in float32 that nobody traces."""
    return (
        not torch.compiler.is_compiling()
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
    )


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Do what ``nn.Linear.forward`` does; a mode that watches the operators sees the usual one."""
    if (
        x.numel() == 0
        or layer.weight.dtype != torch.float32
        or not _evaluates_on_cpu(x)
        or not torch.backends.mkldnn.enabled
        or current_dispatch_mode() is not None
    ):
        return nn.Linear.forward(layer, x)
    return onednn_linear()(x, layer.weight, layer.bias, "none", [], "")


def _convolution(conv: Conv2d, x: Tensor) -> Tensor:
    """Do what the convolution and its frozen norm do.

    Weights are folded in each call: they are small beside feature maps, and nothing can go stale
    when a checkpoint is loaded.
    """
    norm: Any = conv.norm
    if not _evaluates_on_cpu(x) or has_forward_hooks(norm):
        return Conv2d.forward(conv, x)
    scale_C = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift_C = norm.bias - norm.running_mean * scale_C
    if conv.bias is not None:
        shift_C = shift_C + conv.bias * scale_C
    weight = conv.weight * scale_C[:, None, None, None]
    x = convolve(conv, x, weight, shift_C)
    return x if conv.activation is None else conv.activation(x)


def _fast_form(module: nn.Module) -> Callable[..., Tensor] | None:
    """Return the faster form of a module's ``forward``; None for modules that have none."""
    if "forward" in vars(module):
        return None  # somebody else's, or optimized already
    if type(module) is nn.Linear and onednn_linear() is not None:
        return partial(_linear, module)
    if type(module) is Conv2d and type(module.norm) is FrozenBatchNorm2d:
        return partial(_convolution, module)
    return None


class Optimized:
    """What :func:`optimize` changed; :meth:`undo`, or the end of a ``with`` block, takes it back.

    Args:
        modules: the modules whose ``forward`` was replaced.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules

    def undo(self) -> None:
        """Give the modules their own ``forward`` back."""
        while self._modules:
            vars(self._modules.pop()).pop("forward", None)

    def __enter__(self) -> "Optimized":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def optimize(model: nn.Module) -> Optimized:
    """Give a model's linear layers and frozen norms their fast forms for evaluation on CPUs.

    The fast forms work in calls without gradients on a CPU in float32; in any other call the module
    does what it always did, so the model may be trained, moved, compiled and traced as before.
    Results differ by rounding, about 1e-6 of their size. Parameters, hooks and the state dict stay.

    Args:
        model: with ``nn.Linear`` or ``detectron2.layers.Conv2d`` in it; subclasses keep their own
            ``forward``.

    Returns:
        The handle that undoes it.
    """
    changed: list[nn.Module] = []
    for module in model.modules():
        fast: Any = _fast_form(module)
        if fast is not None:
            module.forward = fast
            changed.append(module)
    return Optimized(changed)
