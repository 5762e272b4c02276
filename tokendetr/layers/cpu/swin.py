"""Parts of Swin Transformers in CPU evaluation: attention in one kernel, GELU inside its product.

Shapes: W windows of a batch, S tokens of a window, C channel, M head, D channel of a head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.modeling.backbone import swin
from torch import Tensor, nn
from torch.nn import functional as F

from tokendetr.compat.torch_private import has_forward_hooks
from tokendetr.layers.cpu.cached import Cached
from tokendetr.layers.cpu.conditions import working_dtype
from tokendetr.layers.cpu.linears import linear_and_activation

_MLPS = tuple(getattr(swin, name) for name in ("Mlp", "_Mlp") if hasattr(swin, name))
"""detectron2's class, or that of its stand-in."""


class _WindowAttention:
    """The fast form of attention within windows: logits and weights are never stored.

    Args:
        attention: detectron2's module.
    """

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        self._bias: Cached[Tensor] = Cached()

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows ``x`` [W, S, C], by the fast form if possible."""
        attention = self._attention
        dtype = working_dtype(x, attention.qkv.weight)
        parts = [attention.attn_drop, getattr(attention, "softmax", None)]
        hooked = any(part is not None and has_forward_hooks(part) for part in parts)
        if dtype is None or hooked or attention.attn_drop.training:
            output: Tensor = type(attention).forward(attention, x, mask)
            return output
        windows, tokens, channels = x.shape
        qkv = attention.qkv(x).view(windows, tokens, 3, attention.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._bias_MSS(dtype)[None]
        if mask is not None:
            bias = (bias + mask[:, None].to(dtype)).repeat(windows // len(mask), 1, 1, 1)
        attended_WMSD = F.scaled_dot_product_attention(
            query, key, value, bias.expand(windows, -1, -1, -1), scale=attention.scale
        )
        attended = attended_WMSD.transpose(1, 2).reshape(windows, tokens, channels)
        projected: Tensor = attention.proj_drop(attention.proj(attended))
        return projected

    def _bias_MSS(self, dtype: torch.dtype) -> Tensor:
        """Return the bias of each head and pair of tokens."""
        table, index_SS = (
            self._attention.relative_position_bias_table,
            self._attention.relative_position_index,
        )
        return self._bias.get(
            dtype,
            [table, index_SS],
            lambda: table[index_SS].permute(2, 0, 1).to(dtype).contiguous(),
        )


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """Apply a Swin block's MLP."""
    if mlp.drop.training or has_forward_hooks(mlp.drop):
        output: Tensor = type(mlp).forward(mlp, x)
        return output
    activated: Tensor = mlp.fc2(linear_and_activation(mlp.fc1, mlp.act, x))
    return activated


def fast_swin(module: nn.Module) -> Callable[..., Tensor] | None:
    """Return the fast form of a Swin's window attention or MLP, or None for other modules."""
    if type(module) is swin.WindowAttention:
        return _WindowAttention(module)
    return partial(_mlp, module) if type(module) in _MLPS else None
