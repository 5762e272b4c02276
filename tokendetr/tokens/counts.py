"""How many tokens of each image: Python integers, or a tensor in a program that is being exported.

Shapes: B image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TracedCounts:
    """Counts that only the exported program knows, and what they cannot exceed.

    Attributes:
        count_B: long.
        longest: upper bound of every count, of which shapes are made.
    """

    count_B: Tensor
    longest: int

    def map(self, rule: Callable[[int], int]) -> "TracedCounts":
        """Return ``rule`` of each count, from a table of all counts there can be."""
        table = [rule(count) for count in range(self.longest + 1)]
        table_T = torch.tensor(table, dtype=torch.long, device=self.count_B.device)
        return TracedCounts(table_T[self.count_B], max(table))


Counts = Sequence[int] | TracedCounts
"""A count for each image."""


def map_counts(counts: Counts, rule: Callable[[int], int]) -> Counts:
    """Return ``rule`` of the count of each image.

    Args:
        counts: of each image.
        rule: plain arithmetic on one count.
    """
    if isinstance(counts, TracedCounts):
        return counts.map(rule)
    return [rule(count) for count in counts]


def longest_count(counts: Counts) -> int:
    """Return the largest count; in a traced program the largest that there can be."""
    return counts.longest if isinstance(counts, TracedCounts) else max(counts, default=0)
