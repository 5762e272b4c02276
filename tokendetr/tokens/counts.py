"""Token counts of each image: Python integers, or a tensor in a program that is being exported.

Shapes: B image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TracedCounts:
    """Counts that an exported program computes at run time, with their upper bound.

    Attributes:
        count_B: long.
        longest: upper bound of every count, from which shapes are made.
    """

    count_B: Tensor
    longest: int

    def map(self, rule: Callable[[int], int]) -> "TracedCounts":
        """Apply ``rule`` to each count by a table of all possible counts."""
        table = [rule(count) for count in range(self.longest + 1)]
        table_T = torch.tensor(table, dtype=torch.long, device=self.count_B.device)
        return TracedCounts(table_T[self.count_B], max(table))


Counts = Sequence[int] | TracedCounts
"""One count per image."""


def map_counts(counts: Counts, rule: Callable[[int], int]) -> Counts:
    """Apply ``rule`` to each image's count.

    Args:
        counts: of each image.
        rule: plain arithmetic on one count.
    """
    if isinstance(counts, TracedCounts):
        return counts.map(rule)
    return [rule(count) for count in counts]


def longest_count(counts: Counts) -> int:
    """Return the largest count; in a traced program its upper bound."""
    return counts.longest if isinstance(counts, TracedCounts) else max(counts, default=0)
