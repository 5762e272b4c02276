"""Stand-ins for the vision transformers of detectron2 and timm: their attributes and their calls.

One set of weights fits both, so what is checked on sequences carries over to maps.
"""

import torch
from torch import Tensor, nn

WIDTH, HEADS, DEPTH = 24, 3, 4


class Attention(nn.Module):
    """Self-attention with one projection of queries, keys and values; maps or sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.use_rel_pos = False

    def forward(self, x: Tensor) -> Tensor:
        joint = self.qkv(x.flatten(1, -2)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (self.scale * query @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2)).view_as(x)


class Block(nn.Module):
    """A block of either library; windows as detectron2's, without padding."""

    def __init__(self, window_size: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))
        self.drop_path = self.drop_path1 = self.drop_path2 = nn.Identity()
        self.ls1, self.ls2 = nn.Identity(), nn.Identity()
        self.window_size = window_size
        self.use_residual_block = False

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.window_size:
            size, (batch, height, width, _) = self.window_size, normed.shape
            windows = normed.view(batch, height // size, size, width // size, size, -1)
            windows = windows.transpose(2, 3)
            normed = self.attn(windows.reshape(-1, size, size, WIDTH)).view_as(windows)
            x = x + normed.transpose(2, 3).reshape(x.shape)
        else:
            x = x + self.attn(normed)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """detectron2's plain backbone: maps between blocks, a map as output."""

    def __init__(self, window_sizes: tuple[int, ...] = (0,) * DEPTH) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.blocks = nn.ModuleList(Block(size) for size in window_sizes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return {"last_feat": x.permute(0, 3, 1, 2)}


class VisionTransformer(nn.Module):
    """timm's: sequences between blocks."""

    num_prefix_tokens = 0

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.patch_embed(x).flatten(2).transpose(1, 2))


ViT.__module__ = "detectron2.modeling.backbone.vit"
VisionTransformer.__module__ = "timm.models.vision_transformer"


def build(kind: type[nn.Module], *arguments: object) -> nn.Module:
    """Return a model whose tokens differ enough to be told apart."""
    torch.manual_seed(0)
    model = kind(*arguments)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return model.eval()


def images(height: int = 32, width: int = 32) -> Tensor:
    """Two images of 4 x 4 pixels per token."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
