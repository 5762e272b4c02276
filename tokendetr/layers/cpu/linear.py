"""Linear layers through oneDNN, for evaluation on CPUs.

PyTorch multiplies float32 matrices with MKL, which leaves half of a processor's vector width unused
on other makers' processors; oneDNN, which PyTorch carries for convolutions, does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tokendetr.layers.cpu.frozen_bn import evaluates_on_cpu

_PRODUCT = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """Do what ``layer.forward`` does."""
    if x.dtype != torch.float32 or x.numel() == 0:
        return nn.Linear.forward(layer, x)
    assert _PRODUCT is not None
    return _PRODUCT(x, layer.weight, layer.bias, "none", [], "")


@contextmanager
def onednn_linears(model: nn.Module) -> Iterator[None]:
    """Run the ``nn.Linear`` layers of a model through oneDNN inside the ``with`` block.

    Only for calls without gradients on a CPU in full precision; otherwise, and where a dispatch
    mode watches the operators (to count them, say), nothing changes. Results differ by rounding.

    Args:
        model: whose layers are meant; subclasses of ``nn.Linear`` keep their own forward.
    """
    layers: list[nn.Linear] = []
    if (
        _PRODUCT is not None
        and torch.backends.mkldnn.enabled
        and evaluates_on_cpu(model)
        and _get_current_dispatch_mode() is None
    ):
        layers = [
            module
            for module in model.modules()
            if type(module) is nn.Linear
            and module.weight.dtype == torch.float32
            and "forward" not in vars(module)
        ]
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
