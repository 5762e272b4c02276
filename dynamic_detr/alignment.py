"""Center alignment, Dynamic DETR's regularization: merging should not move the tokens' mean.

Shapes: B image, N all tokens, K reduced tokens, C channel, L level.

Source: Dynamic DETR (ICML 2025, PMLR 267), section 3.
"""

import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tokendetr.encoder.aux_losses import AuxLosses
from tokendetr.tokens import LevelLayout, TokenMap

_LOGGER = logging.getLogger(__name__)

Alignment = Literal["two_pass", "teacher", "per_merge", "off"]
ALIGNMENTS = ("two_pass", "teacher", "per_merge", "off")


class CenterAlignment:
    """The loss ``loss_align`` of one forward pass.

    Args:
        layout: geometry and padding of the batch.
        per_merge: compare each level's mean token before and after each merge; otherwise compare
            the mean of the memory with that of a dense pass.
        weight: factor of the loss.
    """

    def __init__(self, layout: LevelLayout, *, per_merge: bool, weight: float) -> None:
        self.layout = layout
        self.per_merge = per_merge
        self.weight = weight
        self._distances: list[Tensor] = []

    def add_merge(self, before_BNC: Tensor, tokens_BKC: Tensor, token_map: TokenMap) -> None:
        """Record a merge: all tokens before it, and the reduced ones with their map."""
        if self.per_merge:
            before_BLC = self._level_centers(before_BNC, None)
            after_BLC = self._level_centers(tokens_BKC, token_map)
            distance_BL = torch.linalg.vector_norm(before_BLC - after_BLC, dim=-1)
            self._distances.append(distance_BL.mean())

    def add_loss(
        self, losses: AuxLosses, memory_BNC: Tensor, run_dense: Callable[[], Tensor]
    ) -> None:
        """Add the loss of a finished pass.

        Args:
            losses: of the pass.
            memory_BNC: the encoder's output.
            run_dense: returns the dense memory [B, N, C]. It must run after the main pass: autocast
                caches the casts of weights, and casts made without gradients would cut the main
                pass off from its weights.
        """
        if self.per_merge:
            distance = torch.stack(self._distances).mean()
        else:
            target_BC = self._center(run_dense())
            center_BC = self._center(memory_BNC)
            distance = torch.linalg.vector_norm(center_BC - target_BC, dim=-1).mean()
        losses.add("loss_align", self.weight * distance)

    def _center(self, memory_BNC: Tensor) -> Tensor:
        """Return the mean of each image's real tokens, float [B, C]."""
        valid_BN1 = self.layout.valid_BN[..., None].to(memory_BNC.dtype)
        return (memory_BNC * valid_BN1).sum(dim=1) / valid_BN1.sum(dim=1).clamp_min(1)

    def _level_centers(self, tokens_BKC: Tensor, token_map: TokenMap | None) -> Tensor:
        """Return the mean of each level's (reduced) tokens, [B, L, C]."""
        layout = self.layout
        level_BK = layout.level_N.expand(layout.batch_size, -1)
        valid_BK: Tensor | None = layout.valid_BN
        if token_map is not None:
            level_BK, valid_BK = token_map.select(level_BK), token_map.valid_BK
        member_BKL = one_hot(level_BK, layout.num_levels).to(tokens_BKC.dtype)
        if valid_BK is not None:
            member_BKL = member_BKL * valid_BK[..., None]
        count_BL1 = member_BKL.sum(dim=1)[..., None].clamp_min(1)
        return member_BKL.transpose(1, 2) @ tokens_BKC / count_BL1
