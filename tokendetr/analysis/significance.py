"""Interval, p-value and smallest detectable size of a difference, from paired replicates and seeds.

Shapes: R replicate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Difference", "compare", "holm", "seed_variance"]

_NORMAL_975, _NORMAL_80 = 1.959964, 0.841621  # quantiles of the standard normal distribution


@dataclass(frozen=True)
class Difference:
    """A mean difference and its statistics.

    Attributes:
        mean: mean of the measured values.
        low, high: 95 % interval.
        p_value: two-sided.
        smallest_visible: the difference that a test at .05 detects with a power of 80 %.
    """

    mean: float
    low: float
    high: float
    p_value: float
    smallest_visible: float


def compare(
    mean: float, difference_R: npt.NDArray[np.float64], seed_variance: float = 0.0
) -> Difference:
    """Compute the statistics of a difference by a normal approximation.

    Counting replicates on the other side of zero cannot give a p-value below 2 / (R + 1), which
    Holm's correction multiplies by the number of pairs. AP over many images is close to normal, so
    the standard error of the replicates is used instead.

    Args:
        mean: the difference measured on the whole test set.
        difference_R: the difference in each paired replicate; its spread is that of the images.
        seed_variance: variance of ``mean`` over trainings with other seeds.

    Raises:
        ValueError: fewer than 100 replicates.
    """
    count = len(difference_R)
    if count < 100:
        raise ValueError(f"a difference needs at least 100 replicates, got {count}")
    error = math.sqrt(float(difference_R.var(ddof=1)) + seed_variance)
    if error == 0.0:
        return Difference(mean, mean, mean, float(mean == 0.0), 0.0)
    p_value = math.erfc(abs(mean) / error / math.sqrt(2))
    reach = _NORMAL_975 * error
    return Difference(mean, mean - reach, mean + reach, p_value, (_NORMAL_975 + _NORMAL_80) * error)


def seed_variance(scores: Iterable[Sequence[float]]) -> float:
    """Return the variance between seeds, pooled over detectors; 0 if none has two seeds.

    Args:
        scores: for each detector, its score with every seed.
    """
    repeated = [each for each in scores if len(each) > 1]
    squares = sum(statistics.variance(each) * (len(each) - 1) for each in repeated)
    return squares / max(1, sum(len(each) - 1 for each in repeated))


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
