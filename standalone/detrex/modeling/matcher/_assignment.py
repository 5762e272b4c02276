"""Optimal one-to-one assignment from a batch of costs."""

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment

Indices = list[tuple[torch.Tensor, torch.Tensor]]
"""Per image: indices of matched queries (ascending) and of their ground truth, int64 on the CPU."""


def matchable(pred_logits: torch.Tensor, pred_boxes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Flatten the predictions of a batch for the cost functions, in at least single precision.

    Args:
        pred_logits: [B, Q, C].
        pred_boxes: [B, Q, 4].

    Returns:
        Logits [B * Q, C] and boxes [B * Q, 4].

    Raises:
        ValueError: a prediction is NaN or infinite.
    """
    flat = []
    for name, pred in (("pred_logits", pred_logits), ("pred_boxes", pred_boxes)):
        if not torch.isfinite(pred).all():
            images = (~torch.isfinite(pred)).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(
                f"{name} of images {images} in the batch are not finite, so they cannot be matched;"
                " the model has diverged or its input is broken"
            )
        flat.append(pred.flatten(0, 1).to(torch.promote_types(pred.dtype, torch.float32)))
    return tuple(flat)


def assign(cost: torch.Tensor, batch_size: int, sizes: Sequence[int]) -> Indices:
    """Assign queries to ground truth at the least total cost, image by image.

    Args:
        cost: [batch_size * Q, sum(sizes)], queries of all images against ground truth of all
            images.
        batch_size: number of images.
        sizes: ground truth boxes per image.

    Returns:
        For each image min(Q, size) pairs.
    """
    num_queries = len(cost) // batch_size
    per_image = cost.unflatten(0, (batch_size, num_queries)).cpu().split(list(sizes), -1)
    pairs = [linear_sum_assignment(block[image].numpy()) for image, block in enumerate(per_image)]
    return [
        (torch.as_tensor(query, dtype=torch.int64), torch.as_tensor(truth, dtype=torch.int64))
        for query, truth in pairs
    ]
