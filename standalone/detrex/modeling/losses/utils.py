"""Weighting and reduction shared by the losses."""

import torch

_REDUCTIONS = ("none", "mean", "sum")


def reduce_loss(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce an elementwise loss.

    Args:
        loss: any shape.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: another reduction.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def weight_reduce_loss(
    loss: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | None = None,
) -> torch.Tensor:
    """Weight an elementwise loss, then reduce it.

    Args:
        loss: any shape.
        weight: factors that broadcast against ``loss``; they must have as many dimensions.
        reduction: "none", "mean" or "sum".
        avg_factor: divisor of the sum in "mean", instead of the number of elements.

    Raises:
        ValueError: ``weight`` has another number of dimensions, or ``avg_factor`` comes with "sum".
    """
    if weight is not None:
        if weight.ndim != loss.ndim:
            raise ValueError(
                f"weight {tuple(weight.shape)} and loss {tuple(loss.shape)} differ in dimensions"
            )
        loss = loss * weight
    if avg_factor is None or reduction == "none":
        return reduce_loss(loss, reduction)
    if reduction != "mean":
        raise ValueError(f"avg_factor is for the reductions 'mean' and 'none', not {reduction!r}")
    return loss.sum() / (avg_factor + torch.finfo(loss.dtype).eps)
