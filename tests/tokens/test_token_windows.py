"""Windows that no border cuts, and their coherence, against float64 loops.

The loops are written from the paper's text.
"""

import pytest
import torch

from tests.tokens.naive_windows import naive_coherence, naive_windows
from tokendetr.ops import use_reference
from tokendetr.tokens import (
    LevelLayout,
    LevelWindows,
    inverse_norms,
    split_evenly,
    spread_order,
    spread_tokens,
    token_similarity,
    window_coherence,
    window_shapes,
)


def layout_of(*sizes: tuple[int, int]) -> LevelLayout:
    """Return one level, padded to the largest of the images."""
    padded = tuple(max(size[axis] for size in sizes) for axis in range(2))
    return LevelLayout.from_valid_sizes((padded,), [(size,) for size in sizes])


def window_tokens(windows: LevelWindows) -> list[list[int]]:
    return [
        windows.token_A[first : first + cells].tolist()
        for first, cells in zip(windows.first_S.tolist(), windows.cells_S.tolist(), strict=True)
    ]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 8])
def test_an_axis_is_split_into_nearly_equal_parts(window):
    for size in range(1, 140):
        parts = split_evenly(size, window)
        assert sum(parts) == size
        assert len(parts) == max(1, size // window)
        assert max(parts) - min(parts) <= 1
        assert min(parts) >= min(size, window)
        assert parts[::-1] == parts or size % len(parts), "the parts are balanced"
    assert split_evenly(32, 8) == (8, 8, 8, 8)
    assert split_evenly(17, 2) == (2, 2, 2, 2, 3, 2, 2, 2)[::-1]
    assert split_evenly(5, 8) == (5,)


@pytest.mark.parametrize(
    ("height", "width", "window"), [(6, 9, 2), (8, 8, 4), (7, 5, 3), (3, 2, 4)]
)
def test_every_cell_is_in_one_window_with_the_bottom_right_last(height, width, window):
    windows = LevelWindows.of(layout_of((height, width)), 0, window)
    found = window_tokens(windows)
    assert sorted(found) == sorted(naive_windows(height, width, window))
    assert sorted(token for each in found for token in each) == list(range(height * width))
    assert all(each[-1] == max(each) for each in found)
    shapes = window_shapes(height, width, window)
    assert {each.shape: each.count for each in windows.classes} == shapes
    assert sum(rows * columns * n for (rows, columns), n in shapes.items()) == height * width


def test_padded_images_are_divided_as_they_are_alone():
    sizes = [(7, 9), (4, 4), (1, 5)]
    layout = layout_of(*sizes)
    masks = LevelLayout.from_masks([layout.padding_BN.view(3, 7, 9)])
    for batch in (layout, masks):
        found = window_tokens(LevelWindows.of(batch, 0, 2))
        for image, (height, width) in enumerate(sizes):
            own = [each for each in found if each[0] // 63 == image]
            places = [[(t % 63) // 9 * width + t % 63 % 9 for t in each] for each in own]
            alone = window_tokens(LevelWindows.of(layout_of((height, width)), 0, 2))
            assert places == alone
            assert sorted(places) == sorted(naive_windows(height, width, 2))


def test_padding_within_an_image_is_refused():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 1] = True
    with pytest.raises(ValueError, match="right and the bottom"):
        LevelWindows.of(LevelLayout.from_masks([mask]), 0, 2)


@pytest.mark.parametrize(
    ("height", "width", "window"), [(6, 9, 2), (8, 8, 4), (7, 5, 3), (4, 4, 1), (3, 2, 4)]
)
def test_coherence_is_the_mean_pairwise_cosine(height, width, window):
    layout = layout_of((height, width), (height, width))
    x = torch.randn(2, height * width, 6, dtype=torch.float64)
    x[0, 3] = 0.0
    windows = LevelWindows.of(layout, 0, window)
    coherence = window_coherence(x, inverse_norms(x), windows)
    for score, tokens in zip(coherence.tolist(), window_tokens(windows), strict=True):
        if window > 1 or 3 not in tokens:
            rows = x.flatten(0, 1)[tokens]
            assert score == pytest.approx(naive_coherence(rows), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_of_equal_tokens_are_equally_coherent(dtype):
    size, window = 16, 4
    directions = torch.randn(1, size // window, size // window, 64, dtype=dtype)
    x = directions.repeat_interleave(window, 1).repeat_interleave(window, 2).flatten(1, 2)
    windows = LevelWindows.of(layout_of((size, size)), 0, window)
    coherence, _ = token_similarity(x, windows, 0)
    assert coherence.unique().numel() == 1
    with use_reference():
        assert torch.equal(token_similarity(x, windows, 0)[0], coherence)


@pytest.mark.parametrize("images", [2, 12])
def test_the_best_windows_of_each_class_are_chosen(images):
    layout = layout_of(*([(5, 7), (4, 4)] * (images // 2)))
    windows = LevelWindows.of(layout, 0, 2)
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(len(windows.cells_S), generator=generator)
    score[1] = float("nan")
    counts = [max(0, each.count - 1) for each in windows.classes]
    chosen = [row.tolist() for rows in windows.choose(score, counts).by_size() for row in rows]
    expected, start = [], 0
    found = window_tokens(windows)
    for each, count in zip(windows.classes, counts, strict=True):
        own = sorted(
            range(start, start + each.count),
            key=lambda s: -float(score[s].nan_to_num(nan=-1)),
        )
        expected += [found[s] for s in own[:count]]
        start += each.count
    assert sorted(chosen) == sorted(expected)


def test_windows_of_several_levels_are_those_of_each():
    shapes = ((9, 8), (4, 4), (2, 2))
    layout = LevelLayout.from_valid_sizes(shapes, [shapes, ((7, 8), (3, 4), (2, 2))])
    both = LevelWindows.of_levels(layout, ((0, 4), (1, 2)))
    apart = [LevelWindows.of(layout, 0, 4), LevelWindows.of(layout, 1, 2)]
    assert window_tokens(both) == window_tokens(apart[0]) + window_tokens(apart[1])
    assert both.classes == apart[0].classes + apart[1].classes
    assert [each.level for each in both.classes] == [
        level for level, part in enumerate(apart) for _ in part.classes
    ]


def test_scores_are_drawn_where_their_windows_are():
    layout = layout_of((5, 7), (4, 4))
    windows = LevelWindows.of(layout, 0, 2)
    score = torch.arange(float(len(windows.cells_S)))
    drawn = windows.per_token(score, torch.zeros(layout.valid_BN.shape))
    assert torch.equal(drawn.isfinite(), layout.valid_BN)
    for number, tokens in enumerate(window_tokens(windows)):
        assert (drawn.flatten()[tokens] == number).all()


@pytest.mark.parametrize(("rows", "columns"), [(12, 16), (1, 9), (13, 21), (34, 34)])
def test_every_beginning_of_the_spread_order_is_spread(rows, columns):
    """Of the first k cells, each border and each part of the grid has about its share."""
    order = spread_order(rows, columns)
    assert sorted(order.tolist()) == list(range(rows * columns))
    for k in range(0, rows * columns, 7):
        chosen = torch.zeros(rows * columns)
        chosen[order[:k]] = 1
        chosen = chosen.view(rows, columns)
        share = k / (rows * columns)
        for strip in (chosen[-1], chosen[0], chosen[:, -1], chosen[:, 0]):
            assert float(strip.sum()) > share * strip.numel() - 1.5 - 0.05 * strip.numel()
        for part in (chosen[: rows // 2], chosen[:, columns // 3 :]):
            assert abs(float(part.sum()) - share * part.numel()) < 1.5 + 0.1 * part.numel()


def test_spread_tokens_of_a_padded_image_are_those_of_the_image_alone():
    sizes = [(7, 9), (4, 5)]
    orders = spread_tokens(layout_of(*sizes), 0).tolist()
    for order, (height, width) in zip(orders, sizes, strict=True):
        assert sorted(order) == list(range(63))
        alone = spread_tokens(layout_of((height, width)), 0)[0].tolist()
        assert [t // 9 * width + t % 9 for t in order[: height * width]] == alone
        assert alone == spread_order(height, width)[::-1].tolist()
