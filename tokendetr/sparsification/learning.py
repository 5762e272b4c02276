"""Gradient-based learning without labels: scores and the sparse encoder.

Scores learn from the dense decoder's attention, the encoder from the dense encoder's memory.

Shapes: B image, N all tokens, C channel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.detector.token_losses import decoder_attention_loss
from tokendetr.sparsification.teacher import DensePass, DenseTeacher

__all__ = ["Lesson", "attention_loss", "memory_loss", "teach"]

RATIOS = (0.1, 0.2, 0.3, 0.5)
"""Keep ratios that one set of weights is trained for; one is drawn per iteration."""


@dataclass(frozen=True)
class Lesson:
    """Schedule of one training stage.

    Attributes:
        iterations: number of batches.
        lr: initial learning rate of AdamW, with cosine decay to zero.
        clip_norm: maximum norm of the gradients; None: no clipping.
    """

    iterations: int
    lr: float
    clip_norm: float | None = None


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


def memory_loss(memory_BNC: Tensor, dense: DensePass, weight_BN: Tensor) -> Tensor:
    """Return the weighted squared error of a memory against the dense encoder's, per channel.

    Args:
        memory_BNC: of the sparse encoder.
        dense: the teacher's pass.
        weight_BN: weight of each token, at least 0; padding is excluded.
    """
    weight_BN = weight_BN * dense.layout.valid_BN
    error_BN = (memory_BNC - dense.memories[-1]).square().mean(dim=-1)
    return (error_BN * weight_BN).sum() / weight_BN.sum().clamp_min(1e-9)


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
            group["lr"] = 0.5 * lesson.lr * (1 + math.cos(math.pi * iteration / lesson.iterations))
        dense = teacher(batch(iteration), with_mass=True)
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
