"""Speed up evaluation on CPUs: linear layers and convolutions through oneDNN.

See :mod:`tokendetr.layers.cpu.linears`, :mod:`tokendetr.layers.cpu.convolutions`,
:mod:`tokendetr.layers.cpu.feed_forward` and :mod:`tokendetr.layers.cpu.swin`.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from tokendetr.layers.cpu.convolutions import fast_convolution
from tokendetr.layers.cpu.feed_forward import fast_feed_forward
from tokendetr.layers.cpu.linears import fast_linear
from tokendetr.layers.cpu.memory import keep_freed_memory
from tokendetr.layers.cpu.swin import fast_swin
from tokendetr.layers.undoable import Undoable

__all__ = ["Optimized", "optimize"]


def _fast_form(module: nn.Module) -> Callable[..., Any] | None:
    """Return the fast form of a module's ``forward``, or None if it has none."""
    if "forward" in vars(module):
        return None  # replaced by other code, or optimized already
    forms = (fast_linear, fast_convolution, fast_feed_forward, fast_swin)
    return next((fast for form in forms if (fast := form(module)) is not None), None)


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
    """Replace ``forward`` of layers with products by fast forms for CPU evaluation.

    The fast forms run in calls without gradients on a CPU, in float32 or, under autocast, in
    bfloat16. In any other call a module runs its own ``forward``, so the model may be trained,
    moved, compiled and traced as before. Results differ by rounding, about 1e-6 relative in
    float32. Feature maps have channels last. Parameters, hooks and the state dict stay unchanged.
    The fast forms keep copies of the weights, norms folded in and in oneDNN's layout, and make them
    again when a tensor is replaced or changes in place; changes through ``.data`` are not noticed.
    Modules that replace others later, such as adapters, are called.
    The process keeps memory that it frees (:func:`tokendetr.layers.cpu.memory.keep_freed_memory`),
    which undoing does not change.

    Args:
        model: any model. Fast forms exist for ``nn.Linear``, ``nn.Sequential`` with ReLU or GELU
            behind one, ``nn.Conv2d``, ``detectron2.layers.Conv2d``, the stem and the blocks of
            detectron2's ResNet, stages, window attention and MLPs of its Swin,
            ``detrex.layers.FFN`` and ``detrex.layers.MLP``, not for subclasses.

    Returns:
        A handle that reverts it.
    """
    keep_freed_memory()
    changed: list[nn.Module] = []
    for module in model.modules():
        fast: Any = _fast_form(module)
        if fast is not None:
            module.forward = fast
            changed.append(module)
    return Optimized(changed)
