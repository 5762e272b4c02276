"""Argument checks that all operators share."""

import torch
from torch import Tensor


def check_dense(**tensors: Tensor) -> None:
    """Check that the named arguments are dense tensors, the only ones that have kernels.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: a tensor is sparse or has another layout.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got {tensor.layout}")
