"""detectron2's small ViT, and a stand-in for timm's with its attributes and calls.

One set of weights fits both, so results on sequences apply to maps.
"""

import torch
from detectron2.modeling import ViT
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, PATCH, SIZE = 24, 3, 4, 4, 32


class Attention(nn.Module):
    """Self-attention with one projection of queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        joint = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (self.scale * query @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU()
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)


class Block(nn.Module):
    """Attention and feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = Attention(), Mlp()
        self.drop_path1 = self.drop_path2 = self.ls1 = self.ls2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """timm's, without class token: sequences between blocks."""

    num_prefix_tokens = 0

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2, WIDTH))
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed)


VisionTransformer.__module__ = "timm.models.vision_transformer"


def vit(**options: object) -> ViT:
    """Return detectron2's, by default without windows and relative positions."""
    settings = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH}
    return _sharpened(
        lambda: ViT(
            img_size=SIZE,
            pretrain_img_size=SIZE,
            pretrain_use_cls_token=False,
            **{**settings, **options},
        )
    )


def vision_transformer() -> VisionTransformer:
    """Return timm's."""
    return _sharpened(VisionTransformer)


def _sharpened(build):
    """Build a model whose tokens differ enough to be told apart."""
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            parameter.data.mul_(1.5)
    return model


def images(height: int = SIZE, width: int = SIZE) -> Tensor:
    """Two images."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
