"""Windows, position embeddings and patches, shared by the transformer backbones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "PatchEmbed",
    "get_abs_pos",
    "get_rel_pos",
    "window_partition",
    "window_unpartition",
]

Size = tuple[int, int]


class _Mlp(nn.Module):
    """Two linear layers with an activation between them; dropout after both."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        drop: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, Size]:
    """Cut a map [B, H, W, C], padded with zeros to whole windows.

    Returns:
        Windows [B * windows, window_size, window_size, C], row by row; and the padded H and W.
    """
    batch, height, width, channels = x.shape
    rows, columns = -height % window_size, -width % window_size
    if rows or columns:
        x = F.pad(x, (0, 0, 0, columns, 0, rows))
    height, width = height + rows, width + columns
    x = x.reshape(
        batch, height // window_size, window_size, width // window_size, window_size, channels
    )
    return x.transpose(2, 3).reshape(-1, window_size, window_size, channels), (height, width)


def window_unpartition(windows: Tensor, window_size: int, pad_hw: Size, hw: Size) -> Tensor:
    """Undo :func:`window_partition`: a map [B, H, W, C] without its padding.

    Args:
        windows: [B * windows, window_size, window_size, C], or with both sides flattened.
        window_size: side of a window.
        pad_hw: H and W with padding.
        hw: H and W.
    """
    (height, width), channels = pad_hw, windows.shape[-1]
    x = windows.reshape(
        -1, height // window_size, width // window_size, window_size, window_size, channels
    )
    x = x.transpose(2, 3).reshape(-1, height, width, channels)
    return x[:, : hw[0], : hw[1]] if hw != pad_hw else x


def get_rel_pos(q_size: int, k_size: int, rel_pos: Tensor) -> Tensor:
    """Look up the embedding of every offset between queries and keys along one side.

    Args:
        q_size: queries along the side.
        k_size: keys along the same side; if the two differ, the fewer are spread out.
        rel_pos: [L, C] for the offsets -(L - 1) / 2 to (L - 1) / 2, interpolated for another range.

    Returns:
        [q_size, k_size, C].
    """
    length = max(q_size, k_size)
    if rel_pos.shape[0] != 2 * length - 1:
        rel_pos = F.interpolate(rel_pos.T[None], size=2 * length - 1, mode="linear")[0].T
    query = torch.arange(q_size, device=rel_pos.device) * (length / q_size)
    key = torch.arange(k_size, device=rel_pos.device) * (length / k_size)
    offset = query[:, None] - key + (k_size - 1) * (length / k_size)
    return rel_pos[offset.long()]


def get_abs_pos(abs_pos: Tensor, has_cls_token: bool, hw: Size) -> Tensor:
    """Resize the position embeddings of a square of patches.

    Args:
        abs_pos: [1, positions, C].
        has_cls_token: the first one is a class token's, which is removed.
        hw: wanted height and width.

    Returns:
        [1, H, W, C].
    """
    if has_cls_token:
        abs_pos = abs_pos[:, 1:]
    positions = int(abs_pos.shape[1])
    side = round(positions**0.5)
    assert side * side == positions, f"{positions} positions do not form a square"
    if hw == (side, side):
        return abs_pos.reshape(1, side, side, -1)
    square = abs_pos.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    return F.interpolate(square, size=hw, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Embed the patches of an image."""

    def __init__(
        self,
        kernel_size: Sequence[int] = (16, 16),
        stride: Sequence[int] = (16, 16),
        padding: Sequence[int] = (0, 0),
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            in_chans,
            embed_dim,
            kernel_size=(kernel_size[0], kernel_size[1]),
            stride=(stride[0], stride[1]),
            padding=(padding[0], padding[1]),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_chans, H, W] to [B, H / stride, W / stride, embed_dim]."""
        return self.proj(x).permute(0, 2, 3, 1)
