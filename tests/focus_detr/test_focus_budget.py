"""Ratios and counts of Focus-DETR against the published ones."""

import pytest

from focus_detr import FocusBudget, cascade_ratios


def test_the_default_is_the_published_cascade():
    assert cascade_ratios(0.3, 6) == (0.5, 0.4, 0.3, 0.3, 0.2, 0.1)
    assert cascade_ratios(0.1, 6) == (0.1,) * 6
    assert cascade_ratios(0.5, 6) == (0.9, 0.7, 0.6, 0.4, 0.3, 0.1)
    assert cascade_ratios(0.3, 3) == (0.5, 0.3, 0.1)
    assert cascade_ratios(1.0, 6) == (1.0,) * 6
    assert cascade_ratios(0.3, 1) == (0.3,)


@pytest.mark.parametrize("percent", range(2, 101, 3))
@pytest.mark.parametrize("num_layers", [1, 2, 3, 5, 6, 9, 12])
def test_ratios_fall_to_a_tenth_around_their_mean(percent, num_layers):
    keep_ratio = percent / 100
    ratios = cascade_ratios(keep_ratio, num_layers)
    assert len(ratios) == num_layers
    assert sum(ratios) / num_layers == pytest.approx(keep_ratio, abs=1e-6)
    assert list(ratios) == sorted(ratios, reverse=True)
    assert min(ratios) >= min(keep_ratio, 0.1) - 1e-9 and max(ratios) <= 1
    if 0.1 < keep_ratio <= 0.55 and num_layers > 1:
        assert ratios[-1] == pytest.approx(0.1)


def test_each_image_keeps_its_own_share_rounded_up():
    budget = FocusBudget(0.3, 6)
    assert budget.layer_counts(0, [100, 41, 1]) == (50, [50, 21, 1])
    assert budget.layer_counts(2, [10, 11, 1]) == (4, [3, 4, 1])  # 10 * 0.3 is 3, not 4
    assert budget.layer_counts(5, [10, 11, 1]) == (2, [1, 2, 1])


def test_the_published_rule_counts_by_the_largest_image():
    budget = FocusBudget(0.3, 6, counts="batch")
    # int(2765 * 0.5) + 1 = 1383 for the larger image, int(2298 * 0.5) + 1 = 1150 for the other.
    lengths = [budget.layer_counts(layer, [2765, 2298]) for layer in range(6)]
    assert [length for length, _ in lengths] == [1383, 1106, 829, 829, 553, 276]
    assert lengths[0][1] == [1383, 1150] and lengths[1][1] == [1106, 1106]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio"),
        ({"keep_ratio": 1.1}, "keep_ratio"),
        ({"num_layers": 0}, "num_layers"),
        ({"layer_ratios": (0.5, 0.3)}, "layer_ratios"),
        ({"layer_ratios": (0.5, 0.6, 0.3)}, "layer_ratios"),
        ({"layer_ratios": (0.5, 0.3, 0.0)}, "layer_ratios"),
        ({"counts": "global"}, "counts"),
    ],
)
def test_wrong_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        FocusBudget(**{"keep_ratio": 0.3, "num_layers": 3, **arguments})
