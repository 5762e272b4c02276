"""Plain vision transformer of a detector (ViTDet, Li et al., 2022)."""

from collections.abc import Callable, Collection
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.layers._drop_path import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint

from ._simple_pyramid import SimpleFeaturePyramid
from .backbone import Backbone
from .utils import (
    PatchEmbed,
    _Mlp,
    get_abs_pos,
    get_rel_pos,
    window_partition,
    window_unpartition,
)

__all__ = ["SimpleFeaturePyramid", "ViT", "get_vit_lr_decay_rate"]

NormLayer = Callable[[int], nn.Module]


class Attention(nn.Module):
    """Attention among all tokens of a map, with optional relative position embeddings.

    Args:
        dim: channels C.
        num_heads: attention heads M.
        qkv_bias: add a bias to query, key and value.
        use_rel_pos: add the product of a query with embeddings of row and column offsets to the
            logits.
        rel_pos_zero_init: initialize these with zeros.
        input_size: height and width of the map that they are made for.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        width = dim // num_heads
        self.scale = width**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            assert input_size is not None, "relative positions need the map's size"
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size[0] - 1, width))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size[1] - 1, width))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each map [B, H, W, C]."""
        batch, height, width, _ = x.shape
        joint = self.qkv(x).view(batch, height * width, 3, self.num_heads, -1)
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._position_bias(query, height, width) if self.use_rel_pos else None
        out = F.scaled_dot_product_attention(query, key, value, bias, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))

    def _position_bias(self, query_BMND: Tensor, height: int, width: int) -> Tensor:
        """Return the relative-position bias of the logits, [B, M, N, N]."""
        grid = query_BMND.unflatten(2, (height, width))
        rows = torch.einsum("bmhwc,hkc->bmhwk", grid, get_rel_pos(height, height, self.rel_pos_h))
        columns = torch.einsum("bmhwc,wkc->bmhwk", grid, get_rel_pos(width, width, self.rel_pos_w))
        return (rows[..., None] + columns[..., None, :]).flatten(4).flatten(2, 3)


class ResBottleneckBlock(CNNBlockBase):
    """Residual block of three convolutions (1, 3, 1 wide), the identity at the start."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bottleneck_channels: int,
        norm: Any = "LN",
        act_layer: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = Conv2d(in_channels, bottleneck_channels, 1, bias=False)
        self.norm1 = get_norm(norm, bottleneck_channels)
        self.act1 = act_layer()
        self.conv2 = Conv2d(bottleneck_channels, bottleneck_channels, 3, padding=1, bias=False)
        self.norm2 = get_norm(norm, bottleneck_channels)
        self.act2 = act_layer()
        self.conv3 = Conv2d(bottleneck_channels, out_channels, 1, bias=False)
        last: Any = get_norm(norm, out_channels)
        self.norm3 = last
        for convolution in (self.conv1, self.conv2, self.conv3):
            weight_init.c2_msra_fill(convolution)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        out = x
        for layer in self.children():
            out = layer(out)
        return x + out


class Block(nn.Module):
    """Attention, in windows or over the whole map, and MLP, optionally a convolution block.

    Args:
        dim: channels C.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP divided by C.
        drop_path: probability of dropping a residual branch per sample.
        norm_layer: makes a norm for a number of channels.
        act_layer: class of the activations.
        window_size: side of the windows; 0 for the whole map.
        use_residual_block: append a convolution block.
        input_size: height and width of the map.
        attention: further arguments of :class:`Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
        act_layer: type[nn.Module] = nn.GELU,
        window_size: int = 0,
        use_residual_block: bool = False,
        input_size: tuple[int, int] | None = None,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        seen = (window_size, window_size) if window_size else input_size
        self.attn = Attention(dim, num_heads, input_size=seen, **attention)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer)
        self.window_size = window_size
        self.use_residual_block = use_residual_block
        if use_residual_block:
            self.residual = ResBottleneckBlock(dim, dim, dim // 2, act_layer=act_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        attended = self.norm1(x)
        if self.window_size:
            windows, padded = window_partition(attended, self.window_size)
            size = x.shape[1], x.shape[2]
            attended = window_unpartition(self.attn(windows), self.window_size, padded, size)
        else:
            attended = self.attn(attended)
        x = x + self.drop_path(attended)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        if self.use_residual_block:
            x = self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x


class ViT(Backbone):
    """Plain vision transformer: one map at the resolution of the patches.

    Args:
        img_size: side of the images in pixels, for relative positions.
        patch_size: side of a patch in pixels; an incomplete patch at the right or bottom is
            ignored.
        in_chans: channels of the image.
        embed_dim: channels C.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs divided by C.
        qkv_bias: add a bias to query, key and value.
        drop_path_rate: drop-path probability of the last block; it grows from 0.
        norm_layer: makes a norm for a number of channels.
        act_layer: class of the activations.
        use_abs_pos: add position embeddings to the patches.
        use_rel_pos: add relative ones in attention.
        rel_pos_zero_init: initialize these with zeros.
        window_size: side of the windows, in tokens.
        window_block_indexes: blocks that attend in windows.
        residual_block_indexes: blocks that end with convolutions.
        use_act_checkpoint: recompute blocks in the backward pass to save memory.
        pretrain_img_size: side of the images that ``pos_embed`` is for.
        pretrain_use_cls_token: its first row is a class token's.
        out_feature: name of the map.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
        act_layer: type[nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        window_block_indexes: Collection[int] = (),
        residual_block_indexes: Collection[int] = (),
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_feature: str = "last_feat",
    ) -> None:
        super().__init__()
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.use_act_checkpoint = use_act_checkpoint
        patch = (patch_size, patch_size)
        self.patch_embed = PatchEmbed(patch, patch, in_chans=in_chans, embed_dim=embed_dim)
        self.pos_embed: nn.Parameter | None = None
        if use_abs_pos:
            positions = (pretrain_img_size // patch_size) ** 2 + int(pretrain_use_cls_token)
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        side = img_size // patch_size
        self.blocks = nn.ModuleList(
            Block(
                dim=embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                drop_path=probability,
                norm_layer=norm_layer,
                act_layer=act_layer,
                window_size=window_size if index in window_block_indexes else 0,
                use_residual_block=index in residual_block_indexes,
                input_size=(side, side),
                qkv_bias=qkv_bias,
                use_rel_pos=use_rel_pos,
                rel_pos_zero_init=rel_pos_zero_init,
            )
            for index, probability in enumerate(torch.linspace(0, drop_path_rate, depth).tolist())
        )
        self._out_feature_channels = {out_feature: embed_dim}
        self._out_feature_strides = {out_feature: patch_size}
        self._out_features = [out_feature]
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [B, in_chans, H, W] to one map [B, C, H / patch, W / patch]."""
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            size = x.shape[1], x.shape[2]
            x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, size)
        for block in self.blocks:
            if self.use_act_checkpoint and self.training:
                x = checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def get_vit_lr_decay_rate(name: str, lr_decay_rate: float = 1.0, num_layers: int = 12) -> float:
    """Return the factor of a parameter's learning rate: smaller the earlier its block is.

    Args:
        name: of the parameter; those outside ``backbone`` have 1.
        lr_decay_rate: factor from one block to the one before it.
        num_layers: number of blocks.
    """
    depth = num_layers + 1
    if name.startswith("backbone"):
        if ".pos_embed" in name or ".patch_embed" in name:
            depth = 0
        elif ".blocks." in name and ".residual." not in name:
            depth = int(name.partition(".blocks.")[2].split(".")[0]) + 1
    return lr_decay_rate ** (num_layers + 1 - depth)
