"""Speed up evaluation on CPUs: linear layers and convolutions through oneDNN.

PyTorch multiplies float32 matrices by MKL, which uses only half of the vector width of processors
that are not Intel's; oneDNN, which PyTorch includes for convolutions, uses all of it. For
convolutions see :mod:`tokendetr.layers.cpu.convolutions`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.compat.torch_private import onednn_linear
from tokendetr.layers.cpu.conditions import working_dtype
from tokendetr.layers.cpu.convolutions import fast_convolution
from tokendetr.layers.undoable import Undoable

__all__ = ["Optimized", "optimize"]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer, in float32 by oneDNN; in bfloat16 PyTorch itself calls oneDNN."""
    if working_dtype(x, layer.weight) != torch.float32:
        return nn.Linear.forward(layer, x)
    return onednn_linear()(x, layer.weight, layer.bias, "none", [], "")


def _fast_form(module: nn.Module) -> Callable[..., Tensor] | None:
    """Return the fast form of a module's ``forward``, or None if it has none."""
    if "forward" in vars(module):
        return None  # replaced by other code, or optimized already
    if type(module) is nn.Linear and onednn_linear() is not None:
        return partial(_linear, module)
    return fast_convolution(module)


class Optimized(Undoable):
    """Handle of :func:`optimize`.

    Args:
        modules: the modules whose ``forward`` was replaced.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules

    def undo(self) -> None:
        """Restore the modules' own ``forward``."""
        while self._modules:
            vars(self._modules.pop()).pop("forward", None)


def optimize(model: nn.Module) -> Optimized:
    """Replace ``forward`` of linear layers and convolutions by fast forms for CPU evaluation.

    The fast forms run in calls without gradients on a CPU, in float32 or, under autocast, in
    bfloat16. In any other call a module runs its own ``forward``, so the model may be trained,
    moved, compiled and traced as before. Results differ by rounding, about 1e-6 relative in
    float32. Feature maps have channels last. Parameters, hooks and the state dict stay unchanged.
    Folded weights are recomputed when a tensor is replaced or changes in place; changes through
    ``.data`` are not noticed.

    Args:
        model: any model. Fast forms exist for ``nn.Linear``, ``nn.Conv2d``,
            ``detectron2.layers.Conv2d`` and the blocks of detectron2's ResNet, not for subclasses.

    Returns:
        A handle that reverts it.
    """
    changed: list[nn.Module] = []
    for module in model.modules():
        fast: Any = _fast_form(module)
        if fast is not None:
            module.forward = fast
            changed.append(module)
    return Optimized(changed)
