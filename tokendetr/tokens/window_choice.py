"""The best windows of each class: of one size, in one level of one image.

Shapes: S windows, G classes, M windows of the largest class, R chosen windows, P tokens of a
window, X tokens of the largest window, E tokens of all chosen windows. "Flat" tokens count over the
batch.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tokendetr.tokens.constants import kept_tensors

ClassSizes = tuple[tuple[int, int], ...]
"""Number of windows, and tokens of each of them, for each class."""


@dataclass(frozen=True)
class ChosenWindows:
    """Windows that were chosen, the smallest first.

    Attributes:
        member_E: long, the flat tokens of one window after the other, each one's bottom-right
            token last.
        sizes: tokens of a window, and how many such windows there are, for each size.
    """

    member_E: Tensor
    sizes: tuple[tuple[int, int], ...]

    def by_size(self) -> list[Tensor]:
        """Return the flat tokens [R, P] of the windows of each size P."""
        parts = self.member_E.split([cells * number for cells, number in self.sizes])
        return [
            part.view(number, cells)
            for part, (cells, number) in zip(parts, self.sizes, strict=True)
        ]


def choose_windows(
    score_S: Tensor, token_SX: Tensor, classes: ClassSizes, counts: tuple[int, ...]
) -> ChosenWindows:
    """Return each class's best windows; the first of equals.

    Args:
        score_S: higher is better; NaN counts as the lowest score.
        token_SX: long, each window's tokens at the end of its row, the bottom-right one last, class
            after class. Rows of smaller windows begin with copies of their last token.
        classes: their sizes.
        counts: number of windows to choose from each class.
    """
    chosen = chosen_classes(classes, counts)
    lowest = torch.finfo(score_S.dtype).min
    score_S = score_S.nan_to_num(nan=lowest, neginf=lowest)
    wanted = _wanted(classes, counts, score_S.device)
    # One sort, in which classes are rows: small operators cost more than what they sort.
    if wanted.hidden_GM is None:
        score_GM = score_S.view(len(classes), -1)
    else:
        score_GM = score_S[wanted.window_GM].masked_fill(wanted.hidden_GM, float("-inf"))
    rank_GM = score_GM.sort(dim=1, descending=True, stable=True).indices
    window_R = rank_GM.flatten().index_select(0, wanted.place_R) + wanted.first_R
    token_RX = token_SX.index_select(0, window_R)
    parts = token_RX.split([number for _, number in chosen.sizes])
    members = [
        part[:, -cells:].flatten() for part, (cells, _) in zip(parts, chosen.sizes, strict=True)
    ]
    return ChosenWindows(torch.cat(members) if members else token_RX.flatten(), chosen.sizes)


@dataclass(frozen=True)
class ChosenClasses:
    """Classes with the number of windows to choose from each.

    Attributes:
        number: windows of each class.
        cells: tokens of a window of each class.
        counts: windows to choose from each class, no more than it has.
        sizes: as in :class:`ChosenWindows`.
    """

    number: tuple[int, ...]
    cells: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]


@lru_cache(maxsize=1024)
def chosen_classes(classes: ClassSizes, counts: tuple[int, ...]) -> ChosenClasses:
    """Return the classes with the number of windows to choose from each.

    Args:
        classes: their sizes.
        counts: wanted windows of each class.
    """
    number = tuple(windows for windows, _ in classes)
    cells = tuple(cells for _, cells in classes)
    counts = tuple(min(count, windows) for count, windows in zip(counts, number, strict=True))
    found: Counter[int] = Counter()
    for size, count in zip(cells, counts, strict=True):
        found[size] += count
    sizes = tuple(sorted((size, count) for size, count in found.items() if count))
    return ChosenClasses(number, cells, counts, sizes)


@dataclass(frozen=True)
class _Wanted:
    """Where the best windows of each class are after a sort of the classes as rows.

    Attributes:
        window_GM: long, the windows of each class, repeating the last of all beyond its end.
        hidden_GM: bool, True beyond a class's end; None if all classes are equally large.
        place_R: long, the flat places [G, M] of the best windows, the smallest windows first.
        first_R: long, the first window of each one's class.
    """

    window_GM: Tensor
    hidden_GM: Tensor | None
    place_R: Tensor
    first_R: Tensor


@kept_tensors
def _wanted(classes: ClassSizes, counts: tuple[int, ...], device: torch.device) -> _Wanted:
    """Return where the best windows are.

    Args:
        classes: their sizes.
        counts: number of windows to choose from each class.
        device: of the tensors.
    """
    number_G, cells_G = np.array(classes, dtype=np.int64).reshape(-1, 2).T
    count_G = np.minimum(np.array(counts, dtype=np.int64), number_G)
    first_G = np.cumsum(number_G) - number_G
    place_M = np.arange(number_G.max(initial=0))
    hidden_GM = place_M >= number_G[:, None]
    window_GM = np.minimum(first_G[:, None] + place_M, number_G.sum() - 1)
    order_G = np.argsort(cells_G, kind="stable")
    places = [g * len(place_M) + place_M[: count_G[g]] for g in order_G]
    return _Wanted(
        torch.from_numpy(window_GM).to(device),
        torch.from_numpy(hidden_GM).to(device) if hidden_GM.any() else None,
        torch.from_numpy(np.concatenate([place_M[:0], *places])).to(device),
        torch.from_numpy(np.repeat(first_G[order_G], count_G[order_G])).to(device),
    )
