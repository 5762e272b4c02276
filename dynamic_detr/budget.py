"""Token counts of every stage and level of Dynamic DETR: plain integer arithmetic."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tokendetr.errors import check_choice
from tokendetr.tokens import window_shapes

RATIO_ORDERS = ("scatter", "gather")

_SLACK = 1e-9
"""Tolerance that keeps a rounded product such as 10 * (1 - 0.9) from falling below its integer."""


Sizes = tuple[tuple[int, int], ...]
"""(rows, columns) of each level of an image."""


@dataclass(frozen=True)
class StageCounts:
    """What merges in one stage of a batch, and what is left.

    Attributes:
        levels: levels with windows that merge, from 0, and the least cells per side of their
            windows.
        windows: number of these of each class, in the order of
            :attr:`tokendetr.tokens.LevelWindows.classes`.
        coarsest: tokens of each image's coarsest level.
        important: those of them that stay.
        kept: queries of each image.
    """

    levels: tuple[tuple[int, int], ...]
    windows: tuple[int, ...]
    coarsest: tuple[int, ...]
    important: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Queries of the image with most."""
        return max(self.kept)


@dataclass(frozen=True)
class TokenBudget:
    """Keep ratios per stage and level, and the token counts that result.

    Levels are numbered from 1, the finest, as in the paper.

    Attributes:
        keep_ratios: share of tokens kept, in (0, 1]; the first is for a stage's most important
            level.
        level_orders: per stage the levels, most important first.
        stage_lengths: encoder layers of each stage.
        window_sizes: least cells per side of the windows of each level but the coarsest.
        ratio_order: "scatter": the j-th level of the order gets the j-th ratio; "gather": level j
            gets the ratio whose number is the j-th entry of the order (the literal equation 3).

    Raises:
        ValueError: the values do not fit each other; the message names the argument.

    Source: Dynamic DETR (ICML 2025), section 3.2, equation 3, and section 3.3, equation 8.
    """

    keep_ratios: Sequence[float]
    level_orders: Sequence[Sequence[int]]
    stage_lengths: Sequence[int]
    window_sizes: Sequence[int]
    ratio_order: Literal["scatter", "gather"] = "scatter"

    def __post_init__(self) -> None:
        levels = len(self.keep_ratios)
        if not levels or any(not 0 < ratio <= 1 for ratio in self.keep_ratios):
            raise ValueError(f"keep_ratios must lie in (0, 1], got {tuple(self.keep_ratios)}")
        if len(self.window_sizes) != levels - 1 or any(size < 1 for size in self.window_sizes):
            raise ValueError(
                f"window_sizes needs {levels - 1} sizes of at least 1 (one less than keep_ratios), "
                f"got {tuple(self.window_sizes)}"
            )
        if not self.stage_lengths or any(length < 1 for length in self.stage_lengths):
            raise ValueError(f"stage_lengths must be positive, got {tuple(self.stage_lengths)}")
        if len(self.level_orders) != len(self.stage_lengths):
            raise ValueError(
                f"level_orders needs one order for each of the {len(self.stage_lengths)} stages, "
                f"got {len(self.level_orders)}"
            )
        for order in self.level_orders:
            if sorted(order) != list(range(1, levels + 1)):
                raise ValueError(
                    f"level_orders must order the levels 1 to {levels}, got {tuple(order)}"
                )
        check_choice("ratio_order", self.ratio_order, RATIO_ORDERS)

    @property
    def num_levels(self) -> int:
        """Number of feature levels."""
        return len(self.keep_ratios)

    @property
    def num_layers(self) -> int:
        """Number of encoder layers of all stages."""
        return sum(self.stage_lengths)

    @property
    def keeps_all(self) -> bool:
        """True if every ratio is 1."""
        return all(ratio == 1 for ratio in self.keep_ratios)

    def stage(self, layer: int) -> int:
        """Return the stage, from 0, of an encoder layer, from 0."""
        for stage, length in enumerate(self.stage_lengths):
            layer -= length
            if layer < 0:
                return stage
        raise ValueError(f"there are {self.num_layers} layers, got layer {layer + self.num_layers}")

    def level_ratios(self, stage: int) -> tuple[float, ...]:
        """Return the keep ratio of each level, finest first, in a stage."""
        order = self.level_orders[stage]
        if self.ratio_order == "gather":
            return tuple(self.keep_ratios[level - 1] for level in order)
        ratios = [0.0] * self.num_levels
        for ratio, level in zip(self.keep_ratios, order, strict=True):
            ratios[level - 1] = ratio
        return tuple(ratios)

    def merged_windows(
        self, level: int, ratio: float, height: int, width: int
    ) -> dict[tuple[int, int], int]:
        """Return the number of merged windows of each (rows, columns) in one image.

        Windows of every size keep the same share of their tokens, so that no part of an image is
        favored by the size of its windows; the remainder of rounding in one size goes to the next.
        A level never keeps less than its ratio.

        Args:
            level: any but the coarsest, from 0.
            ratio: share of the level's tokens to keep.
            height: rows of the level's real part.
            width: columns of it.
        """
        return dict(_merged_windows(self.window_sizes[level], ratio, height, width))

    def stage_counts(self, ratios: Sequence[float], valid_sizes: tuple[Sizes, ...]) -> StageCounts:
        """Return what merges in a batch.

        Args:
            ratios: of all levels.
            valid_sizes: real (rows, columns) of each image and level.
        """
        return _stage_counts(tuple(self.window_sizes), tuple(ratios), valid_sizes)

    @staticmethod
    def important_tokens(ratio: float, tokens: int) -> int:
        """Return the number of important tokens of the coarsest level; at least 1 if it has any."""
        return min(tokens, max(1, math.floor(tokens * ratio + 0.5)))

    def kept_tokens(self, stage: int, level_shapes: Sequence[Sequence[int]]) -> int:
        """Return the number of queries of one unpadded image in a stage.

        Args:
            stage: from 0.
            level_shapes: (height, width) of each level, finest first.
        """
        kept = 0
        for level, ratio in enumerate(self.level_ratios(stage)):
            height, width = level_shapes[level]
            if level == self.num_levels - 1:
                kept += self.important_tokens(ratio, height * width)
            else:
                merged = self.merged_windows(level, ratio, height, width)
                kept += height * width - saved_tokens(merged)
        return kept


@lru_cache(maxsize=4096)
def _merged_windows(
    window: int, ratio: float, height: int, width: int
) -> tuple[tuple[tuple[int, int], int], ...]:
    """Return the items of :meth:`TokenBudget.merged_windows` for a window size."""
    merged = []
    to_save = 0.0
    for (rows, columns), count in window_shapes(height, width, window).items():
        cells = rows * columns
        to_save += count * cells * (1 - ratio)
        saves = max(cells - 1, 1)
        number = min(count, math.floor(to_save / saves + _SLACK)) if cells > 1 else 0
        to_save -= number * saves
        merged.append(((rows, columns), number))
    return tuple(merged)


@lru_cache(maxsize=1024)
def _stage_counts(
    windows: tuple[int, ...], ratios: tuple[float, ...], valid_sizes: tuple[Sizes, ...]
) -> StageCounts:
    levels, counts = [], []
    kept = [sum(height * width for height, width in sizes[:-1]) for sizes in valid_sizes]
    for level, window in enumerate(windows):
        ratio = ratios[level]
        images = [dict(_merged_windows(window, ratio, *sizes[level])) for sizes in valid_sizes]
        if any(any(merged.values()) for merged in images):
            levels.append((level, window))
            counts += [count for merged in images for count in merged.values()]
            kept = [own - saved_tokens(m) for own, m in zip(kept, images, strict=True)]
    coarsest = tuple(sizes[-1][0] * sizes[-1][1] for sizes in valid_sizes)
    important = tuple(
        count if ratios[-1] == 1 else TokenBudget.important_tokens(ratios[-1], count)
        for count in coarsest
    )
    return StageCounts(
        tuple(levels),
        tuple(counts),
        coarsest,
        important,
        tuple(own + count for own, count in zip(kept, important, strict=True)),
    )


def saved_tokens(merged: Mapping[tuple[int, int], int]) -> int:
    """Return by how many queries merging these windows of (rows, columns) shortens the sequence."""
    return sum(count * (rows * columns - 1) for (rows, columns), count in merged.items())
