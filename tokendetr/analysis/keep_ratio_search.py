"""Choose the keep ratio of a loaded detector by a time limit."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tokendetr.analysis.timing import timed
from tokendetr.encoder.keep_ratio import find_sparsifier, set_keep_ratio
from tokendetr.errors import NotSparsifiableError, TooSlowError

__all__ = ["keep_ratio_within"]

STEPS = 20
"""Keep ratios are tried in steps of 1 / STEPS."""


@torch.no_grad()
def keep_ratio_within(
    detector: nn.Module,
    records: Sequence[dict[str, Any]],
    max_ms: float,
    *,
    repeats: int = 5,
) -> tuple[float, float]:
    """Set the highest keep ratio at which a detector is fast enough on this machine.

    Times are measured under the machine's current load, so the result depends on it.

    Args:
        detector: in evaluation mode, with a sparsifier that has a keep ratio.
        records: the inputs of one pass, such as ``synthetic_inputs(800, 1216)``.
        max_ms: time limit of a pass in milliseconds.
        repeats: number of passes per ratio; their median counts.

    Returns:
        The ratio, and the milliseconds measured at it.

    Raises:
        NotSparsifiableError: the detector has no such sparsifier.
        TooSlowError: no ratio is fast enough; the detector's ratio is unchanged.
        ValueError: ``max_ms`` or ``repeats`` is not positive.
    """
    if not max_ms > 0 or repeats < 1:
        raise ValueError(f"max_ms and repeats must be positive, got {max_ms} and {repeats}")
    sparsifier: Any = find_sparsifier(detector)
    if not hasattr(sparsifier, "keep_ratio"):
        raise NotSparsifiableError(
            f"{type(sparsifier).__name__} has no single keep ratio to choose"
        )
    own = sparsifier.keep_ratio
    device = next(detector.parameters()).device

    def milliseconds(step: int) -> float:
        set_keep_ratio(detector, step / STEPS)
        detector(list(records))  # warm-up: allocates memory, folds weights
        passes = [timed(lambda: detector(list(records)), device) for _ in range(repeats)]
        return 1e3 * statistics.median(passes)

    best, best_ms = 1, milliseconds(1)
    if best_ms > max_ms:
        set_keep_ratio(detector, own)
        raise TooSlowError(
            f"a pass takes {best_ms:.0f} ms at keep ratio {1 / STEPS:g} and the limit is "
            f"{max_ms:g} ms: the rest of the detector is too slow here"
        )
    # Bisection, as the time grows with the ratio.
    low, high = 1, STEPS + 1
    while high - low > 1:
        middle = (low + high) // 2
        taken = milliseconds(middle)
        if taken <= max_ms:
            low, best, best_ms = middle, middle, taken
        else:
            high = middle
    set_keep_ratio(detector, best / STEPS)
    return best / STEPS, best_ms
