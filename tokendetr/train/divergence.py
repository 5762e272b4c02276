"""Recognize and report losses, gradients and outputs that are not finite."""

import re
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["bad_gradients", "is_divergence", "loss_report"]

_WORDS = re.compile(r"not finite|invalid numeric entries|\bnan\b", re.IGNORECASE)


def is_divergence(error: Exception, model: nn.Module) -> bool:
    """Return whether a model raised an error because its own outputs are not finite.

    Matchers and box losses raise before there is a loss to check. Ours and SciPy's errors say so;
    upstream's is an assertion without a message, so the parameters are checked as well.
    """
    return bool(_WORDS.search(str(error))) or not all(
        bool(torch.isfinite(p).all()) for p in model.parameters()
    )


def bad_gradients(model: nn.Module) -> str:
    """Return the names of the first parameters whose gradient is not finite, for messages."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5]) or 'none alone, their sum overflows'}{more}"


def loss_report(iteration: int, reports: Sequence[tuple[dict[str, float], list[str]]]) -> str:
    """Return the message for losses that are not finite.

    Args:
        iteration: the iteration in which they occurred.
        reports: for each rank, these losses by name and the images of its batch.
    """
    lines = [f"a loss is not finite at iteration {iteration}; the weights were not updated."]
    for rank, (found, images) in enumerate(reports):
        if found:
            losses = ", ".join(f"{name} = {value}" for name, value in found.items())
            lines.append(f"Rank {rank}: {losses}; images: {', '.join(images)}")
    lines.append(
        "Look at these images and their boxes; otherwise lower the learning rate, clip gradients "
        "(train.clip_grad.enabled=True) or use train.amp.dtype=bfloat16."
    )
    return "\n".join(lines)
