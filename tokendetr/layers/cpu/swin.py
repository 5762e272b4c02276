"""Swin Transformers in CPU evaluation: attention in one kernel, GELU and sums inside products.

Shapes: B image, N tokens of a map, W windows of a batch (G in packed attention), S tokens of a
window (T in packed attention), C channel, M head, D channel of a head, E entry of a table or of a
joint projection, R row of a block.
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling.backbone import swin
from torch import Tensor, nn
from torch.nn import functional as F

from tokendetr.compat.torch_private import has_forward_hooks
from tokendetr.layers.blocks import blocks_pay, by_blocks
from tokendetr.layers.cached import Cached
from tokendetr.layers.cpu.conditions import working_dtype
from tokendetr.layers.cpu.linears import linear_and_activation, linear_and_sum
from tokendetr.layers.windows import Size, WindowSlots, window_slots
from tokendetr.ops import packed_attention
from tokendetr.ops.fallback import use_extension

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
        dtype = working_dtype(x, attention.relative_position_bias_table)
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


class _Mlp:
    """The fast form of a Swin block's MLP.

    Args:
        mlp: detectron2's module.
    """

    def __init__(self, mlp: Any) -> None:
        self._mlp = mlp

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the MLP, by the fast form if possible."""
        mlp = self._mlp
        if self.has_own_form():
            output: Tensor = type(mlp).forward(mlp, x)
            return output
        activated: Tensor = mlp.fc2(linear_and_activation(mlp.fc1, mlp.act, x))
        return activated

    def has_own_form(self) -> bool:
        """Return True if the MLP must run its own form: it drops, or hooks see what it drops."""
        drop = self._mlp.drop
        return bool(drop.training) or has_forward_hooks(drop)

    def is_hooked(self) -> bool:
        """Return True if hooks see the MLP's tokens."""
        return any(has_forward_hooks(part) for part in self._mlp.modules())

    def and_sum(self, x: Tensor, residual: Tensor) -> Tensor:
        """Apply the MLP and add a tensor."""
        mlp = self._mlp
        return linear_and_sum(mlp.fc2, linear_and_activation(mlp.fc1, mlp.act, x), residual)


def add_mlp(norm: nn.Module, mlp: nn.Module, x: Tensor) -> Tensor:
    """Return ``x + mlp(norm(x))``, block by block and with the sum inside the product if possible.

    Args:
        norm: normalizes every token alone.
        mlp: any module; a Swin's MLP may have a fast form.
        x: tokens [..., C].
    """
    form = vars(mlp).get("forward")
    if (
        not isinstance(form, _Mlp)
        or not blocks_pay(x, training=norm.training)
        or form.has_own_form()
        or form.is_hooked()
        or has_forward_hooks(norm)
    ):
        sum_: Tensor = x + mlp(norm(x))
        return sum_
    x_NC = x.reshape(-1, x.shape[-1])
    return by_blocks(lambda rows_RC: form.and_sum(norm(rows_RC), rows_RC), x_NC).view(x.shape)


def _attend(
    attention: Any,
    slots: WindowSlots,
    normed_NC: Tensor,
    residual_NC: Tensor,
    bias_table_MRR: Tensor | None,
    key_bias_GT: Tensor | None,
) -> Tensor:
    """Attend within windows without padding, shifting or cutting the map, and add a residual."""
    heads = attention.num_heads
    if bias_table_MRR is None:
        rows, columns = (2 * side - 1 for side in attention.window_size)
        table_EM = attention.relative_position_bias_table
        bias_table_MRR = table_EM.view(rows, columns, heads).permute(2, 0, 1)
    joint_GTE = attention.qkv(slots.gather(normed_NC))
    query, key, value = joint_GTE.unflatten(-1, (3, heads, -1)).unbind(2)
    attended_GTMD = packed_attention(
        query,
        key,
        value,
        slots.region_GT,
        scale=attention.scale,
        position_GT2=slots.position_GT2,
        bias_table_MRR=bias_table_MRR,
        key_bias_GT=key_bias_GT,
    )
    return linear_and_sum(attention.proj, slots.scatter(attended_GTMD.flatten(2)), residual_NC)


def is_fast_attention(attention: Any, x: Tensor, *around: Any) -> bool:
    """Return True if an attention has a fast form, and nothing drops in it or sees its steps.

    Linear layers may have hooks; they are called like modules.

    Args:
        attention: a Swin's.
        x: its input.
        around: further modules that a caller leaves out, or None.
    """
    softmax = getattr(attention, "softmax", None)
    silent = [attention, attention.attn_drop, attention.proj_drop, softmax, *around]
    return (
        isinstance(vars(attention).get("forward"), _WindowAttention)
        and not attention.attn_drop.training
        and not attention.proj_drop.training
        and not any(part is not None and has_forward_hooks(part) for part in silent)
        and working_dtype(x, attention.relative_position_bias_table) is not None
    )


class _Stage:
    """The fast form of a stage: its maps are never padded, shifted or cut, but gathered.

    Args:
        stage: detectron2's module.
    """

    def __init__(self, stage: Any) -> None:
        self._stage = stage

    def __call__(
        self, x: Tensor, height: int, width: int
    ) -> tuple[Tensor, int, int, Tensor, int, int]:
        """Run the stage on maps ``x`` [B, height * width, C], by the fast form if possible."""
        stage = self._stage
        if not self._is_plain(x):
            outputs: tuple[Tensor, int, int, Tensor, int, int]
            outputs = type(stage).forward(stage, x, height, width)
            return outputs
        x_NC = x.flatten(0, 1)
        for block in stage.blocks:
            x_NC = add_block(block, x_NC, block_slots(block, len(x), (height, width)))
        x = x_NC.view(x.shape)
        if stage.downsample is None:
            return x, height, width, x, height, width
        down = stage.downsample(x, height, width)
        return x, height, width, down, (height + 1) // 2, (width + 1) // 2

    def _is_plain(self, x: Tensor) -> bool:
        """Return True if the fast form does what the stage does."""
        blocks: Any = self._stage.blocks
        return type(self._stage) is swin.BasicLayer and all(adds_blocks(each, x) for each in blocks)


def adds_blocks(block: Any, x: Tensor) -> bool:
    """Return True if :func:`add_block` computes what a Swin's block computes.

    Its steps may run in another order of the tokens if nothing drops them or sees them.
    """
    return (
        type(block) is swin.SwinTransformerBlock
        and "forward" not in vars(block)
        and not block.training
        and block.attn.window_size == (block.window_size, block.window_size)
        and is_fast_attention(block.attn, x, block, block.drop_path)
        and use_extension(x, "packed_attention")
    )


def add_block(
    block: Any,
    x_NC: Tensor,
    slots: WindowSlots,
    *,
    bias_table_MRR: Tensor | None = None,
    key_bias_GT: Tensor | None = None,
) -> Tensor:
    """Return a Swin block's output for the tokens of maps; :func:`adds_blocks` must be True.

    Args:
        block: the block.
        x_NC: the tokens of all maps, real ones alone, in any order.
        slots: the windows, with the rows of ``x_NC`` and their positions.
        bias_table_MRR: another table of relative positions; None: the block's own.
        key_bias_GT: added to all logits of a key; None: nothing.
    """
    normed_NC = block.norm1(x_NC)
    x_NC = _attend(block.attn, slots, normed_NC, x_NC, bias_table_MRR, key_bias_GT)
    return add_mlp(block.norm2, block.mlp, x_NC)


def block_slots(block: Any, batch: int, size: Size) -> WindowSlots:
    """Return the windows of a Swin's block in a batch of maps of a size."""
    side, moved = block.window_size, block.shift_size
    return window_slots(batch, size, (side, side), (moved, moved))


def fast_swin(module: nn.Module) -> Callable[..., Any] | None:
    """Return the fast form of a Swin's stage, attention or MLP, or None for other modules."""
    if type(module) is swin.WindowAttention:
        return _WindowAttention(module)
    if type(module) is swin.BasicLayer:
        return _Stage(module)
    return _Mlp(module) if type(module) in _MLPS else None
