"""Interval, p-value and smallest detectable size of a difference, from paired replicates.

Shapes: R replicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Difference", "compare", "holm"]

_POWER = 1.959964 + 0.841621  # standard normal quantiles of .975 and .80


@dataclass(frozen=True)
class Difference:
    """A mean difference and its statistics from paired replicates.

    Attributes:
        mean: mean of the measured values.
        low, high: 95 % interval (percentiles of the replicates).
        p_value: two-sided; at least 2 / (replicates + 1).
        smallest_visible: the difference that a test at .05 detects with a power of 80 %.
    """

    mean: float
    low: float
    high: float
    p_value: float
    smallest_visible: float


def compare(mean: float, difference_R: npt.NDArray[np.float64]) -> Difference:
    """Compute the statistics of a difference from its paired replicates.

    Args:
        mean: the difference measured on the whole test set.
        difference_R: the difference in each replicate.

    Raises:
        ValueError: fewer than 100 replicates.
    """
    count = len(difference_R)
    if count < 100:
        raise ValueError(f"a difference needs at least 100 replicates, got {count}")
    low, high = np.percentile(difference_R, (2.5, 97.5))
    below = int(np.count_nonzero(difference_R <= 0))
    above = int(np.count_nonzero(difference_R >= 0))
    p_value = min(1.0, 2 * (min(below, above) + 1) / (count + 1))
    return Difference(
        mean, float(low), float(high), p_value, _POWER * float(difference_R.std(ddof=1))
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple testing, in the given order.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
