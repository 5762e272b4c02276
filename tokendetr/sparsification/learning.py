"""Gradient-based learning without labels: the loop, and scores from the decoder's attention.

Shapes: B image, N all tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.detector.token_losses import decoder_attention_loss
from tokendetr.sparsification.teacher import DensePass, DenseTeacher

__all__ = ["SCORE_RATIO", "Lesson", "attention_loss", "sparse_scores", "teach"]

SCORE_RATIO = 0.3
"""Share of the tokens that scores learn to find; their ranking serves all keep ratios."""


@dataclass(frozen=True)
class Lesson:
    """Schedule of one training stage.

    Attributes:
        iterations: number of batches.
        lr: initial learning rate of AdamW, with cosine decay to zero.
        clip_norm: maximum norm of the gradients; None: no clipping.
        warmup: iterations over which the learning rate first grows.
    """

    iterations: int
    lr: float
    clip_norm: float | None = None
    warmup: int = 0

    def lr_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, from 0."""
        growth = min(1.0, (iteration + 1) / (self.warmup + 1))
        return 0.5 * self.lr * growth * (1 + math.cos(math.pi * iteration / self.iterations))


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


def sparse_scores(student: nn.Module, dense: DensePass) -> Tensor:
    """Return the scores by which a sparse detector ranks a batch's tokens, [B, N]."""
    sparsifier: Any = student.transformer.encoder.sparsifier  # type: ignore[union-attr]
    score_BN: Tensor = sparsifier.plan(dense.context(student)).score_BN
    return score_BN


def teach(
    loss_of: Callable[[DensePass, int], Tensor],
    parameters: Sequence[nn.Parameter],
    lesson: Lesson,
    *,
    teacher: DenseTeacher,
    batch: Callable[[int], list[dict[str, Any]]],
    with_decoding: bool = False,
    start: int = 0,
    state: dict[str, Any] | None = None,
    after: Callable[[int, float, dict[str, Any]], None] | None = None,
) -> None:
    """Minimize a loss over the teacher's passes.

    Args:
        loss_of: computes the loss from a pass and the iteration.
        parameters: the trained parameters; others get no gradient.
        lesson: the schedule.
        teacher: runs the passes, with the decoder's attention.
        batch: returns the images of an iteration.
        with_decoding: record the decoder's call in every pass.
        start: the first iteration, greater than 0 in a resumed run.
        state: the optimizer's state in a resumed run.
        after: called after each update with the iteration, its loss and the optimizer's state.

    Raises:
        FloatingPointError: the loss is not finite; raised before the update.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lesson.lr, weight_decay=1e-4)
    if state is not None:
        optimizer.load_state_dict(state)
    for iteration in range(start, lesson.iterations):
        for group in optimizer.param_groups:
            group["lr"] = lesson.lr_at(iteration)
        dense = teacher(batch(iteration), with_mass=True, with_decoding=with_decoding)
        loss = loss_of(dense, iteration)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of iteration {iteration} is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=list(parameters))
        if lesson.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, lesson.clip_norm)
        optimizer.step()
        if after is not None:
            after(iteration, float(loss.detach()), optimizer.state_dict())
