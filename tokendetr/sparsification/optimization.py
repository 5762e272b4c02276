"""Minimize a loss over the passes of a dense teacher."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.sparsification.teacher import DensePass, DenseTeacher

__all__ = ["Schedule", "distill"]


@dataclass(frozen=True)
class Schedule:
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


def distill(
    loss_of: Callable[[DensePass, int], Tensor],
    parameters: Sequence[nn.Parameter],
    schedule: Schedule,
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
        schedule: of this stage.
        teacher: runs the passes, with the decoder's attention.
        batch: returns the images of an iteration.
        with_decoding: record the decoder's call in every pass.
        start: the first iteration, greater than 0 in a resumed run.
        state: the optimizer's state in a resumed run.
        after: called after each update with the iteration, its loss and the optimizer's state.

    Raises:
        FloatingPointError: the loss is not finite; raised before the update.
    """
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=1e-4)
    if state is not None:
        optimizer.load_state_dict(state)
    for iteration in range(start, schedule.iterations):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(iteration)
        dense = teacher(batch(iteration), with_mass=True, with_decoding=with_decoding)
        loss = loss_of(dense, iteration)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of iteration {iteration} is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=list(parameters))
        if schedule.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, schedule.clip_norm)
        optimizer.step()
        if after is not None:
            after(iteration, float(loss.detach()), optimizer.state_dict())
    optimizer.zero_grad(set_to_none=True)  # for the caller's own training, which may add to them
