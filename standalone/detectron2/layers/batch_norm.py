"""Normalization layers and their short names."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .wrappers import BatchNorm2d

__all__ = ["FrozenBatchNorm2d", "LayerNorm", "get_norm"]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and affine parameters, which are buffers.

    It starts as the identity. State-dict keys: ``weight``, ``bias``, ``running_mean``,
    ``running_var``, and ``num_batches_tracked`` only when it was converted from a batch norm that
    has it. Weights that carry an affine map alone (``weight`` and ``bias``, as Caffe2 models do)
    keep the identity statistics.

    Args:
        num_features: channels C of the [B, C, H, W] input.
        eps: added to the variance.
    """

    _version = 3

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [B, C, H, W] with the stored statistics."""
        if x.requires_grad:
            # F.batch_norm would save tensors for the gradients of weight and bias; an affine map
            # saves only the scale
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
    ) -> None:
        version = local_metadata.get("version")
        if version is None or version < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Freeze every ``BatchNorm2d`` and ``SyncBatchNorm`` in a module, keeping their values.

        Returns:
            A new module if ``module`` itself is such a norm; otherwise ``module``, changed in
            place.
        """
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            frozen = cls(module.num_features, module.eps)
            if module.affine:
                frozen.weight.data = module.weight.data.clone().detach()
                frozen.bias.data = module.bias.data.clone().detach()
            if module.running_mean is not None and module.running_var is not None:
                frozen.running_mean.data = module.running_mean.data
                frozen.running_var.data = module.running_var.data
            frozen.num_batches_tracked = module.num_batches_tracked
            return frozen
        return _convert_children(module, cls.convert_frozen_batchnorm)

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """Turn every frozen batch norm in a module into a ``BatchNorm2d`` with its values.

        Returns:
            A new module if ``module`` itself is frozen; otherwise ``module``, changed in place.
        """
        if isinstance(module, FrozenBatchNorm2d):
            norm = nn.BatchNorm2d(module.num_features, module.eps)
            norm.weight.data = module.weight.data.clone().detach()
            norm.bias.data = module.bias.data.clone().detach()
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.data = module.running_mean.data.clone().detach()
            norm.running_var.data = module.running_var.data.clone().detach()
            if module.num_batches_tracked is not None:
                norm.num_batches_tracked = module.num_batches_tracked
            return norm
        return _convert_children(module, cls.convert_frozenbatchnorm2d_to_batchnorm2d)


def _convert_children(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Apply a conversion to the children of a module, in place."""
    for name, child in module.named_children():
        converted = convert(child)
        if converted is not child:
            module.add_module(name, converted)
    return module


class LayerNorm(nn.Module):
    """Layer norm over the channels of [B, C, H, W].

    Args:
        normalized_shape: channels C.
        eps: added to the variance.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize every pixel over its channels."""
        centered = x - x.mean(1, keepdim=True)
        x = centered / torch.sqrt(centered.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "nnSyncBN": nn.SyncBatchNorm,
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Build a normalization layer.

    Args:
        norm: "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", or a callable from
            channels to a module. None and "" mean no norm.
        out_channels: channels of the layer.

    Returns:
        The layer, or None.

    Raises:
        KeyError: another name.
    """
    if norm is None or (isinstance(norm, str) and not norm):
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise KeyError(
                f"Unknown norm '{norm}': this subset of detectron2 has {', '.join(_NORMS)}. "
                "Use one of them, or a callable."
            )
        norm = _NORMS[norm]
    return norm(out_channels)
