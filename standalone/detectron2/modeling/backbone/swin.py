"""Swin Transformer (Liu et al., Hierarchical Vision Transformer using Shifted Windows, 2021).

Shapes: W windows of a map, S tokens of a window.
"""
# Over 350 lines: upstream has all of this in one module, and users find it there.

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers._drop_path import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint

from .backbone import Backbone
from .utils import _Mlp, window_partition, window_unpartition

__all__ = ["SwinTransformer"]

NormLayer = Callable[[int], nn.Module]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    first, second = value
    return (first, second)


def _shift_mask(height: int, width: int, size: int, shift: int, device: torch.device) -> Tensor:
    """Build the additive mask [windows, S, S] between pixels that only the shift made neighbors.

    Args:
        height: padded height, a multiple of ``size``.
        width: padded width.
        size: window size; S = size * size.
        shift: cyclic shift in pixels.
        device: device of the mask.
    """
    strips = []
    for length in (height, width):
        position = torch.arange(length, device=device)
        strips.append((position >= length - size).long() + (position >= length - shift).long())
    region_HW = strips[0][:, None] * 3 + strips[1][None, :]
    region_WS = window_partition(region_HW[None, :, :, None], size)[0].flatten(1)
    apart = region_WS[:, None, :] != region_WS[:, :, None]
    return torch.zeros(apart.shape, device=device).masked_fill_(apart, -100.0)


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each relative position.

    Args:
        dim: channels C.
        window_size: height and width of a window in tokens.
        num_heads: attention heads M.
        qkv_bias: add a bias to query, key and value.
        qk_scale: scale of the logits; by default (C / M) ** -0.5.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: tuple[int, int],
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.window_size = window_size
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        height, width = window_size
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * height - 1) * (2 * width - 1), num_heads)
        )
        row_S = torch.arange(height).repeat_interleave(width)
        column_S = torch.arange(width).repeat(height)
        delta_row_SS = row_S[:, None] - row_S[None, :] + height - 1
        delta_column_SS = column_S[:, None] - column_S[None, :] + width - 1
        self.register_buffer(
            "relative_position_index", delta_row_SS * (2 * width - 1) + delta_column_SS
        )
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows.

        Args:
            x: [B * windows, S, C].
            mask: [windows, S, S] added to the logits, or None.
        """
        count, tokens, channels = x.shape
        qkv = self.qkv(x).view(count, tokens, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = (query * self.scale) @ key.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        logits = logits + bias.view(tokens, tokens, -1).permute(2, 0, 1)
        if mask is not None:
            windows = mask.shape[0]
            logits = logits.view(-1, windows, self.num_heads, tokens, tokens) + mask[
                None, :, None
            ].to(logits)
            logits = logits.view(-1, self.num_heads, tokens, tokens)
        weights = self.attn_drop(logits.softmax(dim=-1))
        out = (weights @ value).transpose(1, 2).reshape(count, tokens, channels)
        return self.proj_drop(self.proj(out))


class SwinTransformerBlock(nn.Module):
    """Window attention and MLP, each pre-norm and with a residual connection.

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: side of a window in tokens.
        shift_size: cyclic shift of the windows in tokens, 0 <= shift < window size.
        mlp_ratio: hidden width of the MLP divided by C.
        norm_layer: makes a norm for a number of channels.
        drop_path: probability of dropping a residual branch per sample.
        drop: dropout of projections.
        attention: further arguments of :class:`WindowAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift_size: int,
        mlp_ratio: float,
        norm_layer: NormLayer,
        drop_path: float,
        drop: float,
        **attention: Any,
    ) -> None:
        super().__init__()
        assert 0 <= shift_size < window_size, (
            f"shift_size is in [0, {window_size}), not {shift_size}"
        )
        self.dim = dim
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.mlp_ratio = mlp_ratio
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(dim, _pair(window_size), num_heads, proj_drop=drop, **attention)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x_BNC: Tensor, height: int, width: int, mask: Tensor | None) -> Tensor:
        """Transform tokens of a map.

        Args:
            x_BNC: [B, height * width, C].
            height: of the map.
            width: of the map.
            mask: additive mask of shifted windows; unused by blocks without shift.
        """
        batch, _, channels = x_BNC.shape
        size, shift = self.window_size, self.shift_size
        x = self.norm1(x_BNC).view(batch, height, width, channels)
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        padded = x.shape[1], x.shape[2]
        if shift > 0:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        windows = window_partition(x, size)[0].flatten(1, 2)
        windows = self.attn(windows, mask=mask if shift > 0 else None)
        x = window_unpartition(windows, size, padded, padded)
        if shift > 0:
            x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
        x = x[:, :height, :width].reshape(batch, height * width, channels)
        x = x_BNC + self.drop_path(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Halve height and width: concatenate 2x2 neighbors and project 4C to 2C."""

    def __init__(self, dim: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.dim = dim
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(4 * dim)

    def forward(self, x_BNC: Tensor, height: int, width: int) -> Tensor:
        """Map [B, height * width, C] to [B, ceil(height / 2) * ceil(width / 2), 2C]."""
        batch, _, channels = x_BNC.shape
        x = x_BNC.view(batch, height, width, channels)
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged = torch.cat(quarters, dim=-1).view(batch, -1, 4 * channels)
        return self.reduction(self.norm(merged))


class BasicLayer(nn.Module):
    """One stage: blocks alternating between plain and shifted windows, then patch merging.

    Args:
        dim: channels C.
        num_heads: attention heads.
        window_size: side of a window in tokens.
        drop_path: drop-path probability of each block; their number is the depth.
        norm_layer: makes a norm for a number of channels.
        downsample: append patch merging.
        use_checkpoint: recompute blocks in the backward pass to save memory.
        block: further arguments of :class:`SwinTransformerBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        drop_path: Sequence[float],
        norm_layer: NormLayer,
        downsample: bool,
        use_checkpoint: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = window_size // 2
        self.depth = len(drop_path)
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                dim,
                num_heads,
                window_size,
                shift_size=0 if index % 2 == 0 else self.shift_size,
                norm_layer=norm_layer,
                drop_path=probability,
                **block,
            )
            for index, probability in enumerate(drop_path)
        )
        self.downsample = PatchMerging(dim, norm_layer) if downsample else None

    def forward(
        self, x_BNC: Tensor, height: int, width: int
    ) -> tuple[Tensor, int, int, Tensor, int, int]:
        """Transform the map [B, height * width, C].

        Returns:
            The result of the blocks with its height and width, and the input of the next stage with
            its height and width.
        """
        size = self.window_size
        padded_height, padded_width = height + -height % size, width + -width % size
        mask = _shift_mask(padded_height, padded_width, size, self.shift_size, x_BNC.device)
        for block in self.blocks:
            if self.use_checkpoint:
                x_BNC = checkpoint.checkpoint(
                    block, x_BNC, height, width, mask, use_reentrant=False
                )
            else:
                x_BNC = block(x_BNC, height, width, mask)
        if self.downsample is None:
            return x_BNC, height, width, x_BNC, height, width
        merged = self.downsample(x_BNC, height, width)
        return x_BNC, height, width, merged, (height + 1) // 2, (width + 1) // 2


class PatchEmbed(nn.Module):
    """Cut the image into patches and embed each one.

    Args:
        patch_size: side of a patch in pixels; images are zero-padded to multiples of it.
        in_chans: channels of the image.
        embed_dim: channels C of the embedding.
        norm_layer: makes a norm over C, or None.
    """

    def __init__(
        self,
        patch_size: int | Sequence[int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = _pair(patch_size)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.proj = nn.Conv2d(
            in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size
        )
        self.norm = norm_layer(embed_dim) if norm_layer is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_chans, H, W] to [B, C, ceil(H / patch), ceil(W / patch)]."""
        height, width = x.shape[-2:]
        x = self.proj(F.pad(x, (0, -width % self.patch_size[1], 0, -height % self.patch_size[0])))
        if self.norm is None:
            return x
        # Channels stay last in memory: what follows treats tokens one by one.
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SwinTransformer(Backbone):
    """Swin backbone with outputs ``p0``, ..., ``p3`` at strides 4 to 32.

    Args:
        pretrain_img_size: image size the absolute position embedding was made for.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        embed_dim: channels of the first stage; every stage doubles them.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of a window in tokens.
        mlp_ratio: hidden width of MLPs divided by their channels.
        qkv_bias: add a bias to query, key and value.
        qk_scale: scale of the attention logits; by default head width ** -0.5.
        drop_rate: dropout of projections.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: drop-path probability of the last block; it grows linearly from 0.
        norm_layer: makes a norm for a number of channels.
        ape: add a learned absolute position embedding.
        patch_norm: normalize the patch embedding.
        out_indices: stages to return.
        frozen_stages: 0 freezes the patch embedding, 1 also the position embedding, k >= 2 also the
            first k - 1 stages.
        use_checkpoint: recompute blocks in the backward pass to save memory.
    """

    # Over 60 lines: an argument for every key of the configs.
    def __init__(
        self,
        pretrain_img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        norm_layer: NormLayer = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.pretrain_img_size = pretrain_img_size
        self.num_layers = len(depths)
        self.embed_dim = embed_dim
        self.ape = ape
        self.patch_norm = patch_norm
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.patch_embed = PatchEmbed(
            patch_size, in_chans, embed_dim, norm_layer if patch_norm else None
        )
        if ape:
            image, patch = _pair(pretrain_img_size), _pair(patch_size)
            self.absolute_pos_embed = nn.Parameter(
                torch.zeros(1, embed_dim, image[0] // patch[0], image[1] // patch[1])
            )
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(p=drop_rate)

        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.num_features = [int(embed_dim * 2**stage) for stage in range(self.num_layers)]
        self.layers = nn.ModuleList()
        for stage, (channels, depth, heads) in enumerate(
            zip(self.num_features, depths, num_heads, strict=True)
        ):
            first = sum(depths[:stage])
            self.layers.append(
                BasicLayer(
                    channels,
                    heads,
                    window_size,
                    rates[first : first + depth],
                    norm_layer,
                    downsample=stage < self.num_layers - 1,
                    use_checkpoint=use_checkpoint,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    drop=drop_rate,
                    attn_drop=attn_drop_rate,
                )
            )
        for stage in self.out_indices:
            self.add_module(f"norm{stage}", norm_layer(self.num_features[stage]))

        self._freeze_stages()
        self._out_features = [f"p{stage}" for stage in self.out_indices]
        self._out_feature_channels = {f"p{s}": self.num_features[s] for s in self.out_indices}
        self._out_feature_strides = {f"p{s}": 2 ** (s + 2) for s in self.out_indices}
        self._size_divisibility = 32
        self.apply(self._init_weights)

    def _freeze_stages(self) -> None:
        """Stop gradients of the parts that ``frozen_stages`` names."""
        frozen: list[nn.Module] = []
        if self.frozen_stages >= 0:
            frozen.append(self.patch_embed)
        if self.frozen_stages >= 1 and self.ape:
            self.absolute_pos_embed.requires_grad = False
        if self.frozen_stages >= 2:
            self.pos_drop.eval()
            frozen.extend(self.layers[: self.frozen_stages - 1])
        for part in frozen:
            part.eval()
            for parameter in part.parameters():
                parameter.requires_grad = False

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.constant_(module.bias, 0)
        elif isinstance(module, nn.LayerNorm):
            nn.init.constant_(module.bias, 0)
            nn.init.constant_(module.weight, 1.0)

    @property
    def size_divisibility(self) -> int:
        """Divisor of the input's height and width: 32."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [B, in_chans, H, W] to ``p<stage>`` maps [B, C, h, w]."""
        x = self.patch_embed(x)
        height, width = x.shape[-2:]
        if self.ape:
            x = x + F.interpolate(self.absolute_pos_embed, size=(height, width), mode="bicubic")
        x = self.pos_drop(x.flatten(2).transpose(1, 2))
        outputs = {}
        for stage, layer in enumerate(self.layers):
            out, out_height, out_width, x, height, width = layer(x, height, width)
            if stage in self.out_indices:
                out = getattr(self, f"norm{stage}")(out)
                out = out.view(-1, out_height, out_width, self.num_features[stage])
                outputs[f"p{stage}"] = out.permute(0, 3, 1, 2).contiguous()
        return outputs
