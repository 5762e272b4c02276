"""The CUDA kernels on a GPU: against the CPU kernels, PyTorch and the rules for all kernels."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch

from tests.ops.cases import (
    Case,
    flat,
    fused_case,
    gradients,
    odd_locations,
    off_kinks,
    random_case,
    relative,
    usual_case,
)
from tests.ops.gpu_cases import BOUND, DTYPES, attention, on_gpu
from tokendetr.ops import library_facts, ms_deform_attn, ms_deform_attn_fused, use_reference

pytestmark = pytest.mark.cuda


@contextlib.contextmanager
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def cases(dtype: torch.dtype) -> list[Case]:
    """Return random sizes and the usual ones, with coordinates in float32 or float64."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    chosen = [off_kinks(random_case(seed)).to(wide) for seed in range(1, 25)]
    chosen += [off_kinks(usual_case(seed, wide)) for seed in (0, 1)]
    return [Case(x.shapes, x.value.to(dtype), x.locations, x.weights) for x in chosen]


def incoming(case: Case) -> torch.Tensor:
    shape = (*case.locations.shape[:2], case.value.shape[2] * case.value.shape[3])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(case.value.dtype)


def test_extension_has_kernels_for_cuda() -> None:
    assert "cuda" in library_facts().device_types


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ordered", [False, True])
def test_equals_cpu_and_plain_pytorch(dtype: torch.dtype, ordered: bool) -> None:
    for case in cases(dtype):
        grad = incoming(case)
        with deterministic() if ordered else contextlib.nullcontext():
            moved = on_gpu(case)
            actual = [
                attention(case)(*moved.tensors),
                *gradients(attention(case), moved.tensors, grad.cuda()),
            ]
        cpu = [attention(case)(*case.tensors), *gradients(attention(case), case.tensors, grad)]
        exact = case.to(torch.float64)
        with use_reference():
            reference = [
                attention(case)(*exact.tensors),
                *gradients(attention(case), exact.tensors, grad.double()),
            ]
        for ours, theirs, true in zip(actual, cpu, reference, strict=True):
            assert ours.dtype == theirs.dtype
            assert relative(ours.cpu(), true) <= BOUND[dtype]
            assert relative(ours.cpu(), theirs) <= BOUND[dtype]


@pytest.mark.parametrize("reference_width", [2, 4])
@pytest.mark.parametrize("ordered", [False, True])
def test_the_fused_form_equals_the_plain_one(reference_width: int, ordered: bool) -> None:
    for seed in range(1, 20):
        value, shapes, *coordinates = fused_case(seed, reference_width)
        if not len(value):
            continue

        def run(*x, shapes=shapes):
            return ms_deform_attn_fused(x[0], shapes, *x[1:])

        with use_reference():
            exact = run(value, *coordinates)
            grad = torch.randn(exact.shape).double()
            expected = gradients(run, [value, *coordinates], grad)
        for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-3)):
            tensors = [x.to("cuda", dtype) for x in (value, *coordinates)]
            assert relative(run(*tensors).cpu(), exact) <= min(bound, 2e-5)
            with deterministic() if ordered else contextlib.nullcontext():
                actual = gradients(run, tensors, grad.to("cuda", dtype))
            for a, b in zip(actual, expected, strict=True):
                assert relative(a.cpu(), b) <= bound


@pytest.mark.parametrize("width", [1, 30, 32, 64, 71])
def test_gradcheck(width: int) -> None:
    for seed in range(1, 13):
        case = off_kinks(random_case(seed, width=width))
        leaves = [
            x[:1, ...].narrow(2, 0, min(2, x.shape[2])).cuda()
            for x in (case.value, case.locations[:, :2], case.weights[:, :2])
        ]
        torch.autograd.gradcheck(
            attention(case),
            [x.clone().requires_grad_() for x in leaves],
            fast_mode=True,
            nondet_tol=1e-10,
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    for case in cases(dtype)[-4:]:
        moved, grad = on_gpu(case), incoming(case).cuda()
        forward = attention(case)(*moved.tensors)
        with deterministic():
            first = gradients(attention(case), moved.tensors, grad)
            for _ in range(10):
                assert torch.equal(attention(case)(*moved.tensors), forward)
                for a, b in zip(
                    gradients(attention(case), moved.tensors, grad), first, strict=True
                ):
                    assert torch.equal(a, b)


@pytest.mark.parametrize("ordered", [False, True])
def test_input_that_is_not_finite(ordered: bool) -> None:
    for seed in range(1, 33):
        case = odd_locations(random_case(seed, dtype=torch.float32))
        moved = on_gpu(case)
        assert (
            relative(attention(case)(*moved.tensors).cpu(), attention(case)(*case.tensors)) <= 2e-5
        )
        with deterministic() if ordered else contextlib.nullcontext():
            to_value, to_locations, to_weights = gradients(
                attention(case), moved.tensors, incoming(case).cuda()
            )
        odd = ~moved.locations.isfinite().all(-1)
        assert (to_locations[odd] == 0).all()
        assert (to_weights[odd] == 0).all()
        assert to_value.isfinite().all()
        assert to_locations.isfinite().all()
        g = torch.Generator().manual_seed(seed)
        value = torch.where(torch.rand(case.value.shape, generator=g) < 0.01, torch.nan, case.value)
        expected = ms_deform_attn(value, case.shapes, case.locations, case.weights)
        actual = ms_deform_attn(value.cuda(), case.shapes, moved.locations, moved.weights)
        assert torch.equal(actual.isnan().cpu(), expected.isnan())


def test_views_that_are_not_aligned() -> None:
    case = usual_case(0)
    expected = attention(case)(*on_gpu(case).tensors)
    shifted = [
        torch.cat([x.new_zeros(1), x.flatten()]).cuda()[1:].view(x.shape) for x in case.tensors
    ]
    assert torch.equal(attention(case)(*shifted), expected)


def test_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    shapes, images = ((128, 128), (64, 64)), 820
    tokens = sum(h * w for h, w in shapes)
    value = torch.empty(images, tokens, 4, 32, device="cuda", dtype=torch.float16).normal_()
    assert value.numel() > 2**31
    locations = torch.rand(images, 50, 4, 2, 4, 2, device="cuda")
    weights = torch.rand(images, 50, 4, 2, 4, device="cuda")
    output = ms_deform_attn(value, shapes, locations, weights)
    for part in (slice(0, 2), slice(images - 2, images)):
        expected = ms_deform_attn(value[part].clone(), shapes, locations[part], weights[part])
        assert torch.equal(output[part], expected)


def test_opcheck() -> None:
    for seed in (1, 3, 16):
        case = on_gpu(random_case(seed, dtype=torch.float32))
        tensors = [x.requires_grad_() for x in case.tensors]
        torch.library.opcheck(
            torch.ops.tokendetr.ms_deform_attn, (tensors[0], flat(case.shapes), *tensors[1:])
        )
        value, shapes, *coordinates = fused_case(seed, 4, dtype=torch.float32)
        tensors = [x.cuda().requires_grad_() for x in (value, *coordinates)]
        torch.library.opcheck(
            torch.ops.tokendetr.ms_deform_attn_fused, (tensors[0], flat(shapes), *tensors[1:])
        )


def test_autocast_and_another_stream() -> None:
    case = on_gpu(usual_case(1))
    with torch.autocast("cuda", torch.bfloat16):
        output = attention(case)(*case.tensors)
    assert output.dtype == torch.bfloat16
    expected = attention(case)(case.value.bfloat16(), case.locations, case.weights)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = attention(case)(case.value.bfloat16(), case.locations, case.weights)
    stream.synchronize()
    assert torch.equal(output, expected)
    assert torch.equal(again, expected)


LAUNCH_AFTER_A_FAULT = """
import torch
from tests.ops.cases import usual_case
from tests.ops.gpu_cases import attention, on_gpu
case = on_gpu(usual_case(0))
attention(case)(*case.tensors)
torch.cuda.synchronize()
try:
    torch.zeros(2, device="cuda")[torch.tensor([5], device="cuda")].sum().item()
except RuntimeError:
    pass  # the device does nothing from here on
try:
    attention(case)(*case.tensors)
except RuntimeError as error:
    print("raised", type(error).__name__)
"""


def test_a_failed_launch_raises() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LAUNCH_AFTER_A_FAULT],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert "raised" in result.stdout, result.stderr
