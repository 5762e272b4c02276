"""Token counts of each encoder layer of Focus-DETR: plain arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokendetr.compat.cached_property import cached_property
from tokendetr.errors import ExportError, check_choice, check_share
from tokendetr.tokens import Counts, TracedCounts, longest_count, map_counts

COUNT_RULES = ("per_image", "batch")
LOWEST_RATIO = 0.1
_SLACK = 1e-9
"""Tolerance that keeps a rounded product such as 10 * 0.3 from exceeding its integer."""


def cascade_ratios(keep_ratio: float, num_layers: int) -> tuple[float, ...]:
    """Return the keep ratio of each layer: equal steps down to 0.1, around their mean.

    Ratios are rounded to tenths if that preserves the mean, which gives the published
    .5, .4, .3, .3, .2, .1 for a mean of .3 in six layers.

    Args:
        keep_ratio: the mean, in (0, 1].
        num_layers: encoder layers.

    Source: Focus-DETR, arXiv 2307.12612, section 4.1 ("approximate arithmetic sequence, lower
    threshold 0.1").
    """
    spread = max(0.0, min(keep_ratio - LOWEST_RATIO, 1.0 - keep_ratio))
    if num_layers == 1:
        return (keep_ratio,)
    steps = [spread * (1 - 2 * layer / (num_layers - 1)) for layer in range(num_layers)]
    exact = tuple(round(keep_ratio + step, 12) for step in steps)
    rounded = tuple(round(ratio, 1) for ratio in exact)
    keeps_mean = abs(sum(rounded) - keep_ratio * num_layers) < 1e-6
    return rounded if keeps_mean else exact


@dataclass(frozen=True)
class FocusBudget:
    """Tokens kept in each layer.

    Attributes:
        keep_ratio: mean share of tokens kept, in (0, 1].
        num_layers: encoder layers.
        layer_ratios: the share of each layer, not increasing; None: :func:`cascade_ratios`.
        counts: "per_image": each image keeps its own share, rounded up; "batch": the published
            code's rule, see :meth:`layer_counts`.

    Raises:
        ValueError: values are out of range or do not fit each other; the message names the
            argument.
    """

    keep_ratio: float
    num_layers: int
    layer_ratios: Sequence[float] | None = None
    counts: Literal["per_image", "batch"] = "per_image"

    def __post_init__(self) -> None:
        check_share("keep_ratio", self.keep_ratio)
        if self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        check_choice("counts", self.counts, COUNT_RULES)
        given = self.layer_ratios
        if given is None:
            return
        if len(given) != self.num_layers or any(not 0 < ratio <= 1 for ratio in given):
            raise ValueError(
                f"layer_ratios needs {self.num_layers} ratios in (0, 1], got {tuple(given)}"
            )
        if list(given) != sorted(given, reverse=True):
            raise ValueError(f"layer_ratios must not increase, got {tuple(given)}")

    @cached_property
    def ratios(self) -> tuple[float, ...]:
        """The keep ratio of each layer."""
        if self.layer_ratios is not None:
            return tuple(self.layer_ratios)
        return cascade_ratios(self.keep_ratio, self.num_layers)

    def layer_counts(self, layer: int, valid_counts: Counts) -> tuple[int, Counts]:
        """Return the length of a layer's token list, and the number that each image updates.

        With "per_image", image i updates ``ceil(ratio * valid_i)`` tokens and the list has the
        largest of these lengths. With "batch", its length is the first layer's share of the largest
        image (rounded down, plus 1) times this layer's ratio over the first layer's, and an image
        updates as many of them as its own share in the first layer allows.

        Args:
            layer: from 0.
            valid_counts: real tokens of each image.

        Raises:
            ExportError: "batch" in a program that is being exported for images of any size.
        """
        ratio, first = self.ratios[layer], self.ratios[0]
        if self.counts == "batch":
            if isinstance(valid_counts, TracedCounts):
                raise ExportError(
                    "counts='batch' depends on the largest image of a batch: "
                    "export the model for images that fill the canvas (padding=False, "
                    "--no-padding), or set counts='per_image'"
                )
            own = [int(first * valid + _SLACK) + 1 for valid in valid_counts]
            length = int(max(own) * (ratio / first) + _SLACK)
            return length, [min(length, count) for count in own]
        counts = map_counts(valid_counts, lambda valid: math.ceil(ratio * valid - _SLACK))
        return longest_count(counts), counts
