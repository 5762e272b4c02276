"""Gradients: gradcheck, agreement of all forms, determinism, and the rules for odd input."""

import pytest
import torch

from tests.ops.cases import (
    NAMES,
    Case,
    fused_case,
    gradients,
    odd_locations,
    off_kinks,
    random_case,
    relative,
)
from tests.ops.checks import check_gradients
from tokendetr.ops import ms_deform_attn, ms_deform_attn_fused, use_reference


@pytest.mark.parametrize("width", [1, 30, 32, 64, 71, pytest.param(1025, marks=pytest.mark.slow)])
def test_gradcheck(width: int) -> None:
    check_gradients(width, range(1, 11))


@pytest.mark.parametrize("reference_width", [2, 4])
def test_fused_gradcheck(reference_width: int) -> None:
    for seed in range(1, 6):
        value, shapes, reference, offsets, logits = fused_case(seed, reference_width)
        leaves = [
            value[:1, :, :2, :8].clone(),
            reference[:1, :2].clone(),
            offsets[:1, :2, :2].clone(),
            logits[:1, :2, :2].clone(),
        ]
        torch.autograd.gradcheck(
            lambda *x, shapes=shapes: ms_deform_attn_fused(x[0], shapes, *x[1:]),
            [x.requires_grad_() for x in leaves],
            fast_mode=True,
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_autograd_through_plain_pytorch(dtype: torch.dtype) -> None:
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for seed in range(60):
        case = off_kinks(random_case(seed))
        grad = torch.randn(
            case.locations.shape[0],
            case.locations.shape[1],
            case.value.shape[2] * case.value.shape[3],
        ).double()

        def run(*x, shapes=case.shapes):
            return ms_deform_attn(x[0], shapes, *x[1:])

        with use_reference():
            expected = gradients(run, case.tensors, grad)
        actual = gradients(run, case.to(dtype).tensors, grad.to(dtype))
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == dtype
            if b.numel():
                assert float((a - b).abs().max() / b.abs().max().clamp_min(1)) <= tolerance


@pytest.mark.parametrize("queries", [20, 60])  # both levels in place; the small one copied
@pytest.mark.parametrize("shapes", [((40, 30), (20, 15)), ((20, 15), (40, 30))])
def test_levels_in_place_and_copied_get_the_gradients_of_plain_pytorch(
    queries: int, shapes: tuple[tuple[int, int], ...]
) -> None:
    g = torch.Generator().manual_seed(0)
    value = torch.randn(2, 1500, 4, 32, generator=g, dtype=torch.float64)
    locations = torch.rand(2, queries, 4, 2, 4, 2, generator=g, dtype=torch.float64) * 3 - 1
    weights = torch.rand(2, queries, 4, 2, 4, generator=g, dtype=torch.float64)
    case = off_kinks(Case(shapes, value, locations, weights))
    grad = torch.randn(2, queries, 128, generator=g, dtype=torch.float64)

    def run(*x):
        return ms_deform_attn(x[0], shapes, *x[1:])

    with use_reference():
        expected = gradients(run, case.tensors, grad)
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        actual = gradients(run, case.to(dtype).tensors, grad.to(dtype))
        for a, b in zip(actual, expected, strict=True):
            assert relative(a, b) <= bound


@pytest.mark.parametrize("reference_width", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fused_equals_autograd_through_plain_pytorch(
    reference_width: int, dtype: torch.dtype
) -> None:
    tolerance = 1e-10 if dtype == torch.float64 else 2e-3
    for seed in range(60):
        value, shapes, *coordinates = fused_case(seed, reference_width)
        inputs = [value, *coordinates]
        grad = torch.randn(
            value.shape[0], coordinates[0].shape[1], value[0, 0].numel() if len(value) else 0
        )
        if not len(value):
            continue

        def run(*x, shapes=shapes):
            return ms_deform_attn_fused(x[0], shapes, *x[1:])

        with use_reference():
            expected = gradients(run, [x.to(dtype) for x in inputs], grad.to(dtype))
        actual = gradients(run, [x.to(dtype) for x in inputs], grad.to(dtype))
        for a, b in zip(actual, expected, strict=True):
            if b.numel():
                assert float((a - b).abs().max() / b.abs().max().clamp_min(1)) <= tolerance, seed


def test_odd_locations_get_no_gradient() -> None:
    for seed in range(1, 33):
        width = 32 if seed % 2 else None  # whole vectors may be read in place
        case = odd_locations(random_case(seed, width=width, dtype=torch.float32))
        grad = torch.randn(*case.locations.shape[:2], case.value.shape[2] * case.value.shape[3])
        for forced in (False, True):
            leaves = [x.detach().requires_grad_() for x in case.tensors]
            if forced:
                with use_reference():
                    output = ms_deform_attn(leaves[0], case.shapes, *leaves[1:])
            else:
                output = ms_deform_attn(leaves[0], case.shapes, *leaves[1:])
            to_value, to_locations, to_weights = torch.autograd.grad(output, leaves, grad)
            odd = ~case.locations.isfinite().all(-1)
            assert (to_locations[odd] == 0).all()
            assert (to_weights[odd] == 0).all()
            assert to_value.isfinite().all()
            assert to_locations.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_gives_the_same_bits_every_time(dtype: torch.dtype) -> None:
    case = random_case(10, dtype=torch.float32).to(dtype)
    grad = torch.randn(*case.locations.shape[:2], case.value.shape[2] * case.value.shape[3]).to(
        dtype
    )
    threads = torch.get_num_threads()

    def run(*x):
        return ms_deform_attn(x[0], case.shapes, *x[1:])

    first = gradients(run, case.tensors, grad)
    try:
        for count in (1, 2, 3, 2, 1):
            torch.set_num_threads(count)
            for a, b in zip(gradients(run, case.tensors, grad), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_a_call_leaves_in_its_memory_reaches_no_later_call(dtype: torch.dtype) -> None:
    cases = [random_case(seed, width=width) for seed in range(1, 7) for width in (72, 5)]

    def run(case: Case) -> list[torch.Tensor]:
        value = case.value.to(dtype)
        shape = (*case.locations.shape[:2], value.shape[2] * value.shape[3])
        wide = [
            x.to(torch.float64 if dtype == torch.float64 else torch.float32) for x in case.tensors
        ]

        def function(*x: torch.Tensor) -> torch.Tensor:
            return ms_deform_attn(x[0], case.shapes, *x[1:])

        inputs = (value, *wide[1:])
        return [function(*inputs), *gradients(function, inputs, value.new_ones(shape))]

    def fill_with_nan() -> None:
        value = torch.full((1, 40 * 40, 4, 64), torch.nan, dtype=dtype)
        samples = [torch.rand(1, 900, 4, 1, 2, 2), torch.rand(1, 900, 4, 1, 2)]
        inputs = (value, *(x.to(dtype) for x in samples))
        incoming = torch.full((1, 900, 4 * 64), torch.nan, dtype=dtype)
        gradients(lambda *x: ms_deform_attn(x[0], ((40, 40),), *x[1:]), inputs, incoming)

    first = [run(case) for case in cases]
    for case, expected in reversed(list(zip(cases, first, strict=True))):
        fill_with_nan()
        for actual, bits in zip(run(case), expected, strict=True):
            assert torch.equal(actual, bits)


def at_kinks(case: Case, distance: float = 5e-4) -> torch.Tensor:
    """Mark the locations closer than `distance` pixels to where their derivative jumps."""
    kinks = torch.zeros(case.weights.shape, dtype=torch.bool)
    for level, (height, columns) in enumerate(case.shapes):
        pixel = case.locations[:, :, :, level].double() * torch.tensor([columns, height]) - 0.5
        kinks[:, :, :, level] = ((pixel - pixel.round()).abs() < distance).any(-1)
    return kinks


@pytest.mark.parametrize("half_coordinates", [False, True])
def test_half_precision_gradients_are_close_to_exact_ones(half_coordinates: bool) -> None:
    for dtype, bound in ((torch.bfloat16, 2e-2), (torch.float16, 4e-3)):
        for seed in range(1, 20):
            case = off_kinks(random_case(seed)).to(torch.float32)
            low = Case(case.shapes, case.value.to(dtype), case.locations, case.weights)
            if half_coordinates:
                low = case.to(dtype)
            kinks = at_kinks(low)  # half coordinates round onto some: two derivatives there
            assert half_coordinates or not kinks.any()
            grad = torch.randn(
                *low.locations.shape[:2], low.value.shape[2] * low.value.shape[3]
            ).to(dtype)

            def run(*x, shapes=low.shapes):
                return ms_deform_attn(x[0], shapes, *x[1:])

            actual = gradients(run, low.tensors, grad)
            with use_reference():
                expected = gradients(run, [x.float() for x in low.tensors], grad.float())
            for name, a, b in zip(NAMES, actual, expected, strict=True):
                if name == "locations":
                    a, b = a[~kinks], b[~kinks]
                if b.numel():
                    worst = float((a.float() - b).abs().max() / b.abs().max().clamp_min(1e-3))
                    assert worst <= bound, (name, seed)
