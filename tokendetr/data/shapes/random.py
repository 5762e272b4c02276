"""Seeded integers that are the same on every machine and with every version of numpy.

``numpy.random.Generator`` may change its streams between releases; the raw output of a bit
generator and of ``SeedSequence`` may not. Everything here is integer arithmetic on that raw output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
_HALF = np.uint64(32)


class IntegerRandom:
    """Stream of integers, keyed by non-negative integers such as (seed, split, image index)."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def between(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both ends included."""
        return low + (((int(self._bits.random_raw()) >> 32) * (high - low + 1)) >> 32)

    def field(self, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int32]:
        """Return an int32 array of integers in [low, high]."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape))), dtype=np.uint64)
        scaled = ((raw >> _HALF) * np.uint64(high - low + 1)) >> _HALF
        return scaled.astype(np.int32).reshape(shape) + np.int32(low)

    def chance(self, percent: int) -> bool:
        """Return True with a probability of ``percent`` percent."""
        return self.between(0, 99) < percent

    def choice(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.between(0, len(items) - 1)]
