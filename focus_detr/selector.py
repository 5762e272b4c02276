"""Score tokens as foreground: one head for all levels, each level modulated by the previous one.

Shapes: B image, N all tokens, C channel, L level, H and W a level's height and width, S and T the
lengths of a source and a target axis.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from tokendetr.errors import check_choice
from tokendetr.layers.score_head import ScoreHead
from tokendetr.tokens import LevelLayout
from tokendetr.tokens.assignment import without_autocast
from tokendetr.tokens.constants import kept_tensors

Modulation = Literal["top_down", "bottom_up", "none"]
MODULATIONS = ("top_down", "bottom_up", "none")
FIRST_SCALE = 0.3
"""Modulation coefficients are initialized in [-0.3, 0.3], as in the published code."""


class ForegroundSelector(nn.Module):
    """Scores tokens level by level; the scores of one level scale the features of the next.

    Args:
        embed_dim: channels C.
        num_levels: levels L.
        modulation: "top_down" from the coarsest level to the finest, "bottom_up" the reverse,
            "none" scores each level alone.
        mask_padding: exclude padding from means and from resampling, so that an image's scores do
            not depend on its batch; the published code includes it.

    Source: Focus-DETR, arXiv 2307.12612, section 3.2, equation 2.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        num_levels: int = 4,
        modulation: Modulation = "top_down",
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        check_choice("modulation", modulation, MODULATIONS)
        if num_levels < 1:
            raise ValueError(f"num_levels must be at least 1, got {num_levels}")
        self.num_levels = num_levels
        self.modulation = modulation
        self.mask_padding = mask_padding
        self.score_head = ScoreHead(embed_dim=embed_dim, valid_mean=mask_padding)
        if modulation != "none":
            scales = torch.empty(num_levels - 1).uniform_(-FIRST_SCALE, FIRST_SCALE)
            self.level_scales = nn.Parameter(scales)

    def forward(self, tokens_BNC: Tensor, layout: LevelLayout) -> Tensor:
        """Return foreground logits [B, N]; those of padding are meaningless.

        Args:
            tokens_BNC: projected tokens.
            layout: the batch, with ``num_levels`` levels.
        """
        levels = list(range(self.num_levels))
        if self.modulation == "top_down":
            levels.reverse()
        tokens, valid = layout.split(tokens_BNC), layout.split(layout.valid_BN)
        logits: dict[int, Tensor] = {}
        previous: int | None = None
        for step, level in enumerate(levels):
            level_BNC = tokens[level]
            if previous is not None and self.modulation != "none":
                resampled_BN = self._resampled(logits[previous], layout, previous, level)
                factor_BN = self.level_scales[step - 1] * resampled_BN.to(level_BNC.dtype)
                level_BNC = level_BNC + level_BNC * factor_BN[..., None]
            logits[level] = self.score_head(
                level_BNC, valid[level] if layout.may_have_padding else None
            )
            previous = level
        return torch.cat([logits[level] for level in range(self.num_levels)], dim=1)

    def _resampled(
        self, logits_BN: Tensor, layout: LevelLayout, source: int, target: int
    ) -> Tensor:
        """Return one level's logits at another level's tokens: bilinear, corners aligned.

        Each image's real part is resampled separately, which ``F.interpolate`` cannot do in a
        batch. Interpolation is separable: it is a product with a weight matrix per axis and image.
        """
        with without_autocast(logits_BN.device):
            wide = torch.promote_types(logits_BN.dtype, torch.float32)
            image_BHW = logits_BN.to(wide).unflatten(1, layout.level_shapes[source])
            rows_BTS, columns_BTS = (
                self._weights(layout, source, target, axis, wide) for axis in (0, 1)
            )
            return (rows_BTS @ image_BHW @ columns_BTS.transpose(1, 2)).flatten(1)

    def _weights(
        self, layout: LevelLayout, source: int, target: int, axis: int, dtype: torch.dtype
    ) -> Tensor:
        """Return the weights [B, T, S] of the rows (axis 0) or columns of each image."""
        lengths = layout.level_shapes[source][axis], layout.level_shapes[target][axis]
        if not (self.mask_padding and layout.may_have_padding):
            return _full_axis_weights(layout.batch_size, lengths, dtype, layout.device)
        source_B, target_B = (
            layout.grid(layout.valid_BN, level).select(2 - axis, 0).sum(dim=1)
            for level in (source, target)
        )
        return _axis_weights(source_B, target_B, lengths=lengths, dtype=dtype)


@kept_tensors
def _full_axis_weights(
    batch: int, lengths: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the weights of images that fill an axis of both levels."""
    source_B, target_B = (torch.full((batch,), length, device=device) for length in lengths)
    return _axis_weights(source_B, target_B, lengths=lengths, dtype=dtype)


def _axis_weights(
    source_B: Tensor, target_B: Tensor, *, lengths: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Return the weights [B, T, S] of linear interpolation along an axis, corners aligned.

    Args:
        source_B: real length of the source axis of each image.
        target_B: of the target axis.
        lengths: of both axes with padding, (S, T).
        dtype: of the weights.
    """
    source_S, target_T = (torch.arange(n, device=source_B.device, dtype=dtype) for n in lengths)
    last_B1 = (source_B - 1).to(dtype)[:, None]
    step_B1 = last_B1 / (target_B - 1).clamp_min(1).to(dtype)[:, None]
    place_BT = (target_T * step_B1).minimum(last_B1)
    return (1 - (place_BT[:, :, None] - source_S).abs()).clamp_min(0)
