"""Windows of the levels of a padded batch, and their coherence.

Shapes: B image, N all tokens, S windows of some levels (of all images), A their tokens one window
after the other, R rows of windows, G classes: the windows of one size in one level of one image, X
tokens of the largest window.
"Flat" tokens count over the batch: ``image * N + token``. Nothing here carries a gradient.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tokendetr.compat.cached_property import cached_property
from tokendetr.tokens.constants import kept_tensors
from tokendetr.tokens.layout import LevelLayout, LevelShapes
from tokendetr.tokens.norms import token_norms
from tokendetr.tokens.window_choice import ChosenWindows, ClassSizes, choose_windows

# The plane's counterpart of the golden ratio: multiples of the two, taken modulo 1, fill every
# stretch of rows and of columns evenly (M. Roberts, "The unreasonable effectiveness of
# quasirandom sequences", 2018).
_BORDER_FIRST = 0.8
_ROW_STEP, _COLUMN_STEP = 0.7548776662466927, 0.5698402909980532

EQUAL_TOKENS = 1 - 1e-6
"""Largest coherence. Windows whose tokens are equal but for rounding are equally coherent, so that
their order is that of the windows and does not depend on the other images of a batch."""


@dataclass(frozen=True)
class WindowClass:
    """Windows of one size in one level of one image.

    Attributes:
        level: from 0.
        image: number of the image in the batch.
        shape: (rows, columns) of each window.
        count: number of windows.
    """

    level: int
    image: int
    shape: tuple[int, int]
    count: int

    @property
    def cells(self) -> int:
        """Tokens of each window."""
        return self.shape[0] * self.shape[1]


def split_evenly(size: int, window: int) -> tuple[int, ...]:
    """Return the lengths of the ``max(1, size // window)`` nearly equal parts of an axis.

    No part is shorter than the window unless the axis itself is, and lengths differ by at most 1,
    so that the border cuts no window. The longer parts are spread over the axis.
    """
    parts = max(1, size // window)
    edges = [(2 * part * size + parts) // (2 * parts) for part in range(parts + 1)]
    return tuple(end - start for start, end in zip(edges, edges[1:], strict=False))


def window_shapes(height: int, width: int, window: int) -> dict[tuple[int, int], int]:
    """Return the number of windows of each (rows, columns) of one image's level, smallest first."""
    return dict(_window_shapes(height, width, window))


@lru_cache(maxsize=1024)
def _window_shapes(height: int, width: int, window: int) -> tuple[tuple[tuple[int, int], int], ...]:
    rows, columns = Counter(split_evenly(height, window)), Counter(split_evenly(width, window))
    return tuple(
        ((row, column), rows[row] * columns[column])
        for row in sorted(rows)
        for column in sorted(columns)
    )


def spread_order(rows: int, columns: int) -> np.ndarray:
    """Return the cells of a grid in an order whose every prefix is spread evenly over the grid.

    Cells of the outermost rows and columns are moved forward a little: a few cells cannot be spread
    exactly, and the last ones should not lie at the border.

    Returns:
        int64 [rows * columns]: a permutation of ``row * columns + column``.
    """
    key = np.arange(rows)[:, None] * _ROW_STEP + np.arange(columns) * _COLUMN_STEP
    key %= 1.0
    for edge in (np.s_[0, :], np.s_[-1, :], np.s_[1:-1, 0], np.s_[1:-1, -1]):
        key[edge] *= _BORDER_FIRST
    return np.argsort(key.ravel(), kind="stable")


def spread_tokens(layout: LevelLayout, level: int) -> Tensor:
    """Return each image's tokens of a level in an order that spreads over the image, padding last.

    Every prefix of the order is spread and avoids the image's border (:func:`spread_order`
    reversed).

    Returns:
        Long [B, T], tokens counted from the level's first one. Do not write to it.
    """
    sizes = tuple(image[level] for image in layout.valid_sizes)
    return _spread_level(sizes, layout.level_shapes[level], layout.device)


@kept_tensors
def _spread_level(sizes: LevelShapes, shape: tuple[int, int], device: torch.device) -> Tensor:
    orders = [spread_tokens_of_size(size, shape) for size in sizes]
    return torch.from_numpy(np.array(orders, dtype=np.int64)).to(device)


@lru_cache(maxsize=256)
def spread_tokens_of_size(real_size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Return one image's row of :func:`spread_tokens`."""
    (rows, columns), (height, width) = real_size, shape
    order = spread_order(rows, columns)[::-1]
    real = order // max(columns, 1) * width + order % max(columns, 1)
    return np.concatenate([real, np.setdiff1d(np.arange(height * width), real)])


@dataclass(frozen=True)
class LevelWindows:
    """The windows of one or several levels, over all images of a batch, without padding.

    They are ordered by class and within a class by :func:`spread_order`, so that among equally
    coherent windows the chosen ones are spread over the image. Batches of equal sizes share the
    tensors: do not write to them.

    Attributes:
        classes: level by level, in it image by image, the smallest windows first.
        token_A: long, the flat tokens window by window, each window's bottom-right one last.
        token_SX: long, the same with a row for each window, as in
            :func:`~tokendetr.tokens.window_choice.choose_windows`.
        first_S: long, offset of each window's tokens in ``token_A``.
        cells_S: long, tokens of each window.
        cells_S1: the same in float32, with an axis for channels.
    """

    classes: tuple[WindowClass, ...]
    token_A: Tensor
    token_SX: Tensor
    first_S: Tensor
    cells_S: Tensor
    cells_S1: Tensor

    @classmethod
    def of(cls, layout: LevelLayout, level: int, window: int) -> "LevelWindows":
        """Divide a level's real part in every image of a batch.

        Args:
            layout: the batch.
            level: from 0.
            window: least cells per side of a window (:func:`split_evenly`).
        """
        return cls.of_levels(layout, ((level, window),))

    @classmethod
    def of_levels(cls, layout: LevelLayout, windows: Sequence[tuple[int, int]]) -> "LevelWindows":
        """Divide the real part of several levels.

        Args:
            layout: the batch.
            windows: for each level (from 0) the cells per side of a window, as in :meth:`of`.
        """
        return _windows(layout.level_shapes, layout.valid_sizes, tuple(windows), layout.device)

    @cached_property
    def class_sizes(self) -> ClassSizes:
        """Number of windows, and tokens of each of them, for each class."""
        return tuple((each.count, each.cells) for each in self.classes)

    def choose(self, score_S: Tensor, counts: Sequence[int]) -> ChosenWindows:
        """Return each class's best windows.

        Args:
            score_S: higher is better; NaN counts as the lowest score.
            counts: number of windows to choose from each class.
        """
        return choose_windows(score_S, self.token_SX, self.class_sizes, tuple(counts))

    def per_token(self, score_S: Tensor, like_BN: Tensor) -> Tensor:
        """Return the windows' scores as a map of all tokens [B, N], NaN outside the windows."""
        map_N = like_BN.new_full((like_BN.numel(),), float("nan"), dtype=score_S.dtype)
        map_N[self.token_A] = score_S.repeat_interleave(self.cells_S)
        return map_N.view(like_BN.shape)


@kept_tensors
def _windows(
    level_shapes: LevelShapes,
    valid_sizes: tuple[LevelShapes, ...],
    windows: tuple[tuple[int, int], ...],
    device: torch.device,
) -> LevelWindows:
    """Return the windows of levels; arguments as in :class:`tokendetr.tokens.LevelLayout`."""
    starts = [0]
    for height, width in level_shapes:
        starts.append(starts[-1] + height * width)
    classes: list[WindowClass] = []
    tokens, cells = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for level, window in windows:
        for image, sizes in enumerate(valid_sizes):
            token_A, cells_S, counts = _image_windows(*sizes[level], level_shapes[level][1], window)
            tokens.append(token_A + image * starts[-1] + starts[level])
            cells.append(cells_S)
            classes.extend(WindowClass(level, image, shape, count) for shape, count in counts)
    token_A, cells_S = np.concatenate(tokens), np.concatenate(cells)
    first_S = np.cumsum(cells_S) - cells_S
    member_SX = np.arange(cells_S.max(initial=0)) - (cells_S.max(initial=0) - cells_S)[:, None]
    member_SX = np.where(member_SX < 0, cells_S[:, None] - 1, member_SX)
    cells_S1 = cells_S[:, None].astype(np.float32)
    arrays = (token_A, token_A[first_S[:, None] + member_SX], first_S, cells_S, cells_S1)
    return LevelWindows(tuple(classes), *(torch.from_numpy(x).to(device) for x in arrays))


@lru_cache(maxsize=256)
def _image_windows(
    height: int, width: int, stride: int, window: int
) -> tuple[np.ndarray, np.ndarray, tuple[tuple[tuple[int, int], int], ...]]:
    """Return one image's windows: the tokens of one after the other, sizes, and classes.

    The windows' rows are ``stride`` apart.
    """
    rows, columns = split_evenly(height, window), split_evenly(width, window)
    shapes = window_shapes(height, width, window)
    order_S = spread_order(len(rows), len(columns))
    number = {shape: number for number, shape in enumerate(shapes)}
    class_RC = np.array([[number[row, column] for column in columns] for row in rows])
    order_S = order_S[np.argsort(class_RC.ravel()[order_S], kind="stable")]
    rank_S = np.empty_like(order_S)
    rank_S[order_S] = np.arange(len(order_S))
    row_H = np.repeat(np.arange(len(rows)), rows)
    column_W = np.repeat(np.arange(len(columns)), columns)
    rank_HW = rank_S[row_H[:, None] * len(columns) + column_W]
    token_HW = np.arange(height)[:, None] * stride + np.arange(width)
    token_A = token_HW.ravel()[np.argsort(rank_HW.ravel(), kind="stable")]
    cells_S = np.outer(rows, columns).ravel()[order_S]
    return token_A.astype(np.int64), cells_S.astype(np.int64), tuple(shapes.items())


@torch.no_grad()
def inverse_norms(x_BNC: Tensor) -> Tensor:
    """Return 1 / length of each token, [B, N], float32 (float64 for float64 tokens)."""
    return token_norms(x_BNC).reciprocal()


@torch.no_grad()
def window_coherence(x_BNC: Tensor, inverse_norm_BN: Tensor, windows: LevelWindows) -> Tensor:
    """Return the mean pairwise cosine similarity of the tokens of each window.

    The mean over all pairs of unit vectors is the squared length of their mean, so no pairwise
    matrix is made. A zero vector has similarity 0 with everything. Pairs include a token with
    itself, which favors smaller windows: only windows of equally many tokens can be compared.

    Args:
        x_BNC: tokens of all levels.
        inverse_norm_BN: their :func:`inverse_norms`.
        windows: of the levels.

    Returns:
        Float32 (float64 for float64 tokens) [S] in [-1e-6, EQUAL_TOKENS].

    Source: Dynamic DETR (ICML 2025), section 3.3, equations 5 and 6.
    """
    x_BNC = x_BNC if x_BNC.dtype == torch.float64 else x_BNC.float()
    if windows.token_A.numel() == 0:
        return x_BNC.new_zeros(windows.first_S.shape)
    # One fused gather and weighted sum: the unit vectors are never stored.
    sum_SC = torch.embedding_bag(
        x_BNC.flatten(0, 1),
        windows.token_A,
        windows.first_S,
        mode=0,  # sum
        per_sample_weights=inverse_norm_BN.flatten().index_select(0, windows.token_A),
    )[0]
    return sum_SC.div_(windows.cells_S1).square_().sum(dim=-1).clamp_(max=EQUAL_TOKENS)
