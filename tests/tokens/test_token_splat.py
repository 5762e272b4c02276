"""Splatting attention on the tokens, against plain loops in float64 and the attention itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokendetr.ops import ms_deform_attn
from tokendetr.tokens import smallest_covering_set, splat_attention

SHAPES = ((5, 7), (3, 4), (1, 2))


def draw(shapes=SHAPES, *, batch=2, queries=6, heads=2, points=3, seed=0, low=-0.3, high=1.3):
    generator = torch.Generator().manual_seed(seed)
    size = (batch, queries, heads, len(shapes), points)
    locations = torch.empty(*size, 2, dtype=torch.float64).uniform_(low, high, generator=generator)
    weights = torch.rand(size, generator=generator, dtype=torch.float64)
    return locations, weights


def splat_by_loops(locations, weights, shapes, half_cell):
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    mass = [[0.0] * sum(h * w for h, w in shapes) for _ in range(len(weights))]
    for index, weight in enumerate(weights.flatten().tolist()):
        b, _, _, level, _ = (
            int(i) for i in torch.unravel_index(torch.tensor(index), weights.shape)
        )
        height, width = shapes[level]
        x, y = locations.view(-1, 2)[index].tolist()
        x, y = (v * size - 0.5 * half_cell for v, size in ((x, width), (y, height)))
        for row in range(height):
            for column in range(width):
                share = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
                mass[b][starts[level] + row * width + column] += weight * share
    return torch.tensor(mass, dtype=torch.float64)


@pytest.mark.parametrize("half_cell", [True, False])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_map_is_that_of_plain_loops(half_cell, seed):
    locations, weights = draw(seed=seed)
    mass = splat_attention(locations, weights, SHAPES, half_cell=half_cell)
    expected = splat_by_loops(locations, weights, SHAPES, half_cell)
    torch.testing.assert_close(mass, expected, rtol=1e-12, atol=1e-12)


def test_a_tokens_mass_is_what_its_value_is_multiplied_with():
    """The output of one query for values of one is the mass; here for every token by gradients."""
    locations, weights = draw(queries=4, heads=1, seed=3)
    value = torch.zeros(2, sum(h * w for h, w in SHAPES), 1, 1, dtype=torch.float64)
    value.requires_grad_()
    ms_deform_attn(value, SHAPES, locations, weights).sum().backward()
    mass = splat_attention(locations, weights, SHAPES)
    torch.testing.assert_close(mass, value.grad[:, :, 0, 0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("half_cell", [True, False])
def test_inside_a_level_no_mass_is_lost(half_cell):
    shapes = ((8, 9), (4, 5))
    locations, weights = draw(shapes, low=0.15, high=0.75, seed=5)
    mass = splat_attention(locations, weights, shapes, half_cell=half_cell)
    levels = mass.split([h * w for h, w in shapes], dim=1)
    for level, level_mass in enumerate(levels):
        torch.testing.assert_close(level_mass.sum(1), weights[:, :, :, level].sum((1, 2, 3)))


def test_conventions_differ_by_half_a_token():
    locations = torch.tensor([2.5, 1.5]).div(torch.tensor([7.0, 5.0])).view(1, 1, 1, 1, 1, 2)
    weights = torch.ones(1, 1, 1, 1, 1)
    centered = splat_attention(locations, weights, ((5, 7),)).view(5, 7)
    assert centered[1, 2] == pytest.approx(1.0)
    shifted = splat_attention(locations, weights, ((5, 7),), half_cell=False).view(5, 7)
    for row, column in ((1, 2), (1, 3), (2, 2), (2, 3)):
        assert shifted[row, column] == pytest.approx(0.25, rel=1e-5)


def test_far_and_non_finite_locations_count_nothing():
    locations, weights = draw(batch=1, queries=1, heads=1, points=1)
    for bad in (math.nan, math.inf, -math.inf, 1e30, -1e30):
        locations[..., 0] = bad
        assert splat_attention(locations, weights, SHAPES).eq(0).all()


def test_results_are_float32_without_gradient_and_empty_queries_have_no_mass():
    locations, weights = draw()
    weights = weights.bfloat16().requires_grad_()
    mass = splat_attention(locations.float(), weights, SHAPES)
    assert mass.dtype == torch.float32
    assert not mass.requires_grad
    empty = splat_attention(locations[:, :0], weights[:, :0], SHAPES)
    assert empty.shape == (2, 49)
    assert empty.eq(0).all()


def test_shapes_that_do_not_fit_are_refused():
    locations, weights = draw()
    with pytest.raises(ValueError, match=r"3 levels do not fit 2"):
        splat_attention(locations, weights, SHAPES[:2])
    with pytest.raises(ValueError, match="locations"):
        splat_attention(locations[..., 0], weights, SHAPES)


@settings(max_examples=40, deadline=None)
@given(
    masses=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    fraction=st.floats(0.05, 1.0),
)
def test_the_covering_set_is_the_smallest(masses, fraction):
    mass = torch.tensor([masses], dtype=torch.float64)
    chosen = smallest_covering_set(mass, fraction)[0]
    goal = fraction * sum(masses)
    assert mass[0][chosen].sum() >= goal - 1e-9
    largest_first = sorted(masses, reverse=True)
    needed = next(k for k in range(len(masses) + 1) if sum(largest_first[:k]) >= goal - 1e-9)
    assert chosen.sum() == needed


def test_the_covering_set_leaves_padding_out_and_prefers_earlier_tokens():
    mass = torch.tensor([[9.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    valid = torch.tensor([[False, True, True, True, True]] * 2)
    chosen = smallest_covering_set(mass, 0.5, valid_BN=valid)
    assert chosen.tolist() == [[False, True, True, False, False], [False] * 5]
    for fraction in (0.0, 1.1):
        with pytest.raises(ValueError, match="fraction"):
            smallest_covering_set(mass, fraction)
