"""Values: against the oracle and PyTorch in the same precision; the rules for odd input."""

import pytest
import torch

from tests.ops.cases import Case, fused_case, oracle, random_case, relative
from tests.ops.checks import (
    check_against_oracle,
    check_half_precision,
    check_odd_locations,
    check_poisoned,
    run,
)
from tokendetr.ops import (
    extension_available,
    ms_deform_attn,
    ms_deform_attn_fused,
    sampling_locations,
    use_reference,
)


def test_extension_is_built_where_the_suite_runs() -> None:
    assert extension_available()


def test_matches_oracle() -> None:
    check_against_oracle(range(200))


@pytest.mark.slow
def test_matches_oracle_on_a_thousand_cases() -> None:
    check_against_oracle(range(1000))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_error_is_at_most_twice_pytorchs(dtype: torch.dtype) -> None:
    check_half_precision(dtype, range(50))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_error_on_a_thousand_cases(dtype: torch.dtype) -> None:
    check_half_precision(dtype, range(1000))


@pytest.mark.parametrize("reference_width", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fused_equals_unfused(reference_width: int, dtype: torch.dtype) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for seed in range(40):
        value, shapes, reference, offsets, logits = fused_case(seed, reference_width)
        locations = sampling_locations(shapes, reference, offsets)
        weights = logits.flatten(-2).softmax(-1).view(logits.shape)
        expected = oracle(Case(shapes, value, locations, weights))
        tensors = [x.to(dtype) for x in (value, reference, offsets, logits)]
        assert (
            relative(ms_deform_attn_fused(tensors[0], shapes, *tensors[1:]), expected) <= tolerance
        )
        with use_reference():
            actual = ms_deform_attn_fused(tensors[0], shapes, *tensors[1:])
        assert relative(actual, expected) <= tolerance


def test_level_shapes_may_be_a_tensor() -> None:
    case = random_case(3)
    assert torch.equal(
        ms_deform_attn(case.value, torch.tensor(case.shapes), case.locations, case.weights),
        run(case),
    )


def test_strided_and_expanded_input_gives_the_same_bits() -> None:
    case = random_case(7, dtype=torch.float32)
    expected = run(case)
    strided = Case(
        case.shapes,
        case.value.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3),
        case.locations.flip(-1).flip(-1).transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([case.weights, case.weights], -1)[..., 0],
    )
    assert torch.equal(run(strided), expected)
    wide = case.value[:1].expand(4, -1, -1, -1)
    actual = ms_deform_attn(
        wide,
        case.shapes,
        case.locations[:1].expand(4, *[-1] * 5),
        case.weights[:1].expand(4, *[-1] * 4),
    )
    assert torch.equal(actual, expected[:1].expand(4, -1, -1))


def test_the_same_bits_every_time_and_for_every_number_of_threads() -> None:
    case = random_case(11, dtype=torch.float32)
    expected, threads = run(case), torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(run(case), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_non_finite_and_huge_locations_contribute_nothing(dtype: torch.dtype) -> None:
    check_odd_locations(dtype, range(1, 33))


def test_non_finite_values_and_weights_reach_exactly_what_samples_them() -> None:
    check_poisoned(range(1, 33))


@pytest.mark.parametrize("queries", [20, 200])  # both levels in place; the small one copied
@pytest.mark.parametrize("shapes", [((40, 30), (20, 15)), ((20, 15), (40, 30))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_levels_read_in_place_agree_with_copied_ones(
    queries: int, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(0)
    value = torch.randn(2, 1500, 4, 32, generator=g).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    locations = torch.rand(2, 1500, 4, 2, 4, 2, generator=g, dtype=wide) * 3 - 1
    weights = torch.rand(2, 1500, 4, 2, 4, generator=g, dtype=wide)
    everything = ms_deform_attn(value, shapes, locations, weights)
    few = ms_deform_attn(
        value, shapes, locations[:, :queries].contiguous(), weights[:, :queries].contiguous()
    )
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(few, everything[:, :queries], rtol=bound, atol=1e-5)


def test_autocast_keeps_coordinates_in_float32() -> None:
    case = random_case(5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(case)
        with use_reference():
            fallback = run(case)
    assert actual.dtype == fallback.dtype == torch.bfloat16
    rounded = Case(
        case.shapes, case.value.bfloat16().double(), case.locations.double(), case.weights.double()
    )
    assert relative(actual, oracle(rounded)) <= 1e-2
    assert relative(fallback, oracle(rounded)) <= 1e-2
