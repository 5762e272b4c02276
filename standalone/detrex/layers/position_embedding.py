"""Position embeddings of the pixels of a feature map and of coordinates of points and boxes."""

import math
from typing import Any

import torch
from torch import nn


def _wavelengths(num_pos_feats: int, temperature: float, device: torch.device) -> torch.Tensor:
    """Return ``temperature ** (2 * floor(i / 2) / num_pos_feats)`` by channel i, in float32."""
    channel = torch.arange(num_pos_feats, dtype=torch.float32, device=device)
    pair = torch.div(channel, 2, rounding_mode="floor")
    return temperature ** (2 * pair / num_pos_feats)


def _interleave_sin_cos(angle: torch.Tensor) -> torch.Tensor:
    """Replace even channels by their sine and odd ones by their cosine."""
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


class PositionEmbeddingSine(nn.Module):
    """Fixed sine embedding of pixel positions.

    Source: Carion et al., 2020, "End-to-End Object Detection with Transformers".

    Args:
        num_pos_feats: channels per axis, even; the output has twice as many, those of y first.
        temperature: base of the geometric series of wavelengths.
        scale: range of normalized positions, in radians; used with ``normalize`` only.
        eps: added to the extent that positions are divided by.
        offset: added to positions before normalization; -0.5 for pixel centers.
        normalize: measure positions as shares of the valid extent instead of pixels.

    Raises:
        TypeError: ``normalize`` with a ``scale`` that is not a number.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: int = 10000,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
        offset: float = 0.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if normalize and not isinstance(scale, (int, float)):
            raise TypeError(
                f"scale must be a number of radians when normalize is set, got {scale!r}"
            )
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.normalize = normalize
        self.scale = scale
        self.eps = eps
        self.offset = offset

    def forward(self, mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Embed every pixel.

        Args:
            mask: bool [B, H, W], True where the pixel is padding.
            **kwargs: ignored.

        Returns:
            float32 [B, 2 * num_pos_feats, H, W].
        """
        valid = ~mask.bool()
        y = valid.cumsum(1, dtype=torch.float32)
        x = valid.cumsum(2, dtype=torch.float32)
        if self.normalize:
            y = (y + self.offset) / (y[:, -1:, :] + self.eps) * self.scale
            x = (x + self.offset) / (x[:, :, -1:] + self.eps) * self.scale
        wavelength = _wavelengths(self.num_pos_feats, self.temperature, mask.device)
        embedded = [_interleave_sin_cos(axis[..., None] / wavelength) for axis in (y, x)]
        return torch.cat(embedded, dim=3).permute(0, 3, 1, 2)


class PositionEmbeddingLearned(nn.Module):
    """Learned embedding of rows and columns.

    Args:
        num_pos_feats: channels per axis; the output has twice as many, those of x first.
        row_num_embed: largest height of a feature map in pixels.
        col_num_embed: largest width of a feature map in pixels.
    """

    def __init__(
        self, num_pos_feats: int = 256, row_num_embed: int = 50, col_num_embed: int = 50
    ) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(row_num_embed, num_pos_feats)
        self.col_embed = nn.Embedding(col_num_embed, num_pos_feats)
        self.num_pos_feats = num_pos_feats
        self.row_num_embed = row_num_embed
        self.col_num_embed = col_num_embed
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both tables uniformly from [0, 1)."""
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        """Embed every pixel of ``mask`` [B, H, W] (only its shape counts).

        Returns:
            [B, 2 * num_pos_feats, H, W].

        Raises:
            ValueError: the map is larger than the tables.
        """
        height, width = mask.shape[-2:]
        if height > self.row_num_embed or width > self.col_num_embed:
            raise ValueError(
                f"a feature map of {height} x {width} pixels exceeds the learned table of"
                f" {self.row_num_embed} rows x {self.col_num_embed} columns; raise row_num_embed"
                " and col_num_embed"
            )
        columns = self.col_embed.weight[:width].expand(height, width, -1)
        rows = self.row_embed.weight[:height, None].expand(height, width, -1)
        position = torch.cat([columns, rows], dim=-1).permute(2, 0, 1)
        return position.repeat(mask.shape[0], 1, 1, 1)


def get_sine_pos_embed(
    pos_tensor: torch.Tensor,
    num_pos_feats: int = 128,
    temperature: int = 10000,
    exchange_xy: bool = True,
) -> torch.Tensor:
    """Compute the sine embedding of coordinates.

    Args:
        pos_tensor: normalized coordinates [..., n] (1 is the image's whole extent): points (x, y)
            or boxes (x, y, w, h).
        num_pos_feats: channels per coordinate, even.
        temperature: base of the geometric series of wavelengths.
        exchange_xy: put the embedding of y before that of x.

    Returns:
        [..., n * num_pos_feats].
    """
    if exchange_xy and pos_tensor.shape[-1] > 1:
        x, y, size = pos_tensor[..., :1], pos_tensor[..., 1:2], pos_tensor[..., 2:]
        pos_tensor = torch.cat([y, x, size], dim=-1)
    wavelength = _wavelengths(num_pos_feats, temperature, pos_tensor.device)
    # All coordinates at once: for a few hundred boxes an operator costs more than its arithmetic.
    return _interleave_sin_cos(pos_tensor[..., None] * (2 * math.pi) / wavelength).flatten(-2)
