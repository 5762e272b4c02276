"""Speed up evaluation on CPUs: linear layers and convolutions through oneDNN.

PyTorch multiplies float32 matrices with MKL, which leaves half of a processor's vector width unused
on other makers' processors; oneDNN, which PyTorch carries for convolutions, does not. What happens
to convolutions is told in :mod:`tokendetr.layers.cpu.convolutions`.
"""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.compat.torch_private import onednn_linear
from tokendetr.layers.cpu.conditions import working_dtype
from tokendetr.layers.cpu.convolutions import fast_convolution

__all__ = ["Optimized", "optimize"]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Do what ``nn.Linear.forward`` does; in bfloat16 PyTorch calls oneDNN by itself."""
    if working_dtype(x, layer.weight) != torch.float32:
        return nn.Linear.forward(layer, x)
    return onednn_linear()(x, layer.weight, layer.bias, "none", [], "")


def _fast_form(module: nn.Module) -> Callable[..., Tensor] | None:
    """Return the faster form of a module's ``forward``; None for modules that have none."""
    if "forward" in vars(module):
        return None  # somebody else's, or optimized already
    if type(module) is nn.Linear and onednn_linear() is not None:
        return partial(_linear, module)
    return fast_convolution(module)


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
    """Give a model's linear layers and convolutions their fast forms for evaluation on CPUs.

    The fast forms work in calls without gradients on a CPU, in float32 or, under autocast, in
    bfloat16; in any other call the module does what it always did, so the model may be trained,
    moved, compiled and traced as before. Results differ by rounding, about 1e-6 of their size in
    float32. Feature maps come with channels last. Parameters, hooks and the state dict stay.
    Folded weights are made again when a tensor changes in place or is replaced; a change through
    ``.data`` is not seen.

    Args:
        model: with ``nn.Linear``, ``nn.Conv2d``, ``detectron2.layers.Conv2d`` or the blocks of
            detectron2's ResNet in it; subclasses keep their own ``forward``.

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
