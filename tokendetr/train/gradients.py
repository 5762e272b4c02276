"""Gradients of an update: weights of its micro-batches, and clipping."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

__all__ = ["box_weights", "clip_gradients"]


def box_weights(batches: Sequence[Iterable[Any]], device: torch.device) -> list[float]:
    """Return the weight of each micro-batch's losses, by its boxes; a collective of all ranks.

    A criterion divides its losses by n, the number of boxes of a batch averaged over ranks and at
    least 1, and DDP averages gradients over ranks; together they divide by the number of boxes of
    the whole world. One large batch would be divided by the sum of the micro-batches' n. Weights of
    n over that sum, with the same average and the same lower bound as the criterion's, make the
    accumulated gradient equal to the large batch's.

    Args:
        batches: of this rank; the ground truth of a record is its ``instances``.
        device: of the exchange between ranks.
    """
    counts = torch.tensor([float(_count_boxes(batch)) for batch in batches], dtype=torch.float64)
    ranks = comm.get_world_size()
    if ranks > 1:
        shared = counts.to(device)
        dist.all_reduce(shared)
        counts = shared.cpu() / ranks
    whole = max(float(counts.sum()), 1.0)
    return [max(float(count), 1.0) / whole for count in counts]


def _count_boxes(batch: Iterable[Any]) -> int:
    return sum(len(r["instances"]) for r in batch if isinstance(r, Mapping) and "instances" in r)


def clip_gradients(
    parameters: Sequence[nn.Parameter], *, max_norm: float = float("inf"), **options: Any
) -> Tensor:
    """Clip gradients in place, and return their norm before it.

    Args:
        parameters: each has a gradient.
        max_norm: largest norm; infinity only measures.
        **options: further arguments of ``torch.nn.utils.clip_grad_norm_``.
    """
    if max_norm == float("inf"):
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, **options)
