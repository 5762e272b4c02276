"""Scores that rank a batch's tokens by the attention of the dense decoder.

Shapes: B image, N all tokens.
"""

import math
from typing import Any

from torch import Tensor, nn

from tokendetr.detector.token_losses import decoder_attention_loss
from tokendetr.sparsification.teacher import DensePass

__all__ = ["SCORE_RATIO", "attention_loss", "sparse_scores"]

SCORE_RATIO = 0.3
"""Share of the tokens that scores learn to find; their ranking serves all keep ratios."""


def attention_loss(score_BN: Tensor, mass_BN: Tensor, dense: DensePass, ratio: float) -> Tensor:
    """Return the loss of scores that predict the ``ratio`` of an image's tokens with most mass."""
    valid_counts = [sum(levels) for levels in dense.layout.valid_counts]
    return decoder_attention_loss(
        score_BN,
        mass_BN,
        [math.ceil(ratio * count) for count in valid_counts],
        valid_BN=dense.layout.valid_BN,
        valid_counts=valid_counts,
    )


def sparse_scores(student: nn.Module, dense: DensePass) -> Tensor | None:
    """Return the scores [B, N] by which a sparse detector ranks a batch's tokens, or None."""
    sparsifier: Any = student.transformer.encoder.sparsifier  # type: ignore[union-attr]
    score_BN: Tensor | None = sparsifier.plan(dense.context(student)).score_BN
    return score_BN
