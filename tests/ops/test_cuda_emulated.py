"""The CUDA kernels' source, compiled for the CPU with emulated warps, against PyTorch."""

import ctypes
from pathlib import Path

import pytest
import torch

from tests.ops.cases import (
    Case,
    fused_case,
    gradients,
    odd_locations,
    off_kinks,
    oracle,
    random_case,
    relative,
    usual_case,
)
from tests.ops.emulation import STORAGE, compiled_emulation, numbers, pointer, pointers
from tokendetr.ops import ms_deform_attn, ms_deform_attn_fused, use_reference


class Emulator:
    """The CUDA binding around the emulated kernels."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def call(self, shapes, value, reference, locations, weights):
        value, locations, weights = (x.contiguous() for x in (value, locations, weights))
        reference = None if reference is None else reference.contiguous()
        batch, _, heads, width = value.shape
        self.kept = value, locations, weights, reference
        return (
            numbers([batch, heads, width, locations.shape[1], len(shapes), locations.shape[4]]),
            numbers([size for pair in shapes for size in pair]),
            STORAGE[value.dtype],
            pointers(value, locations, weights, reference),
            0 if reference is None else reference.shape[-1],
        )

    def forward(self, shapes, value, locations, weights, reference=None):
        batch, _, heads, width = value.shape
        output = torch.full((batch, locations.shape[1], heads * width), torch.nan).to(value.dtype)
        self.library.emulate_forward(
            *self.call(shapes, value, reference, locations, weights), pointer(output)
        )
        return output

    def backward(self, grad, shapes, value, locations, weights, reference=None, ordered=False):
        """Return the gradients of value, locations, weights and, if given, reference."""
        call = self.call(shapes, value, reference, locations, weights)
        wide = locations.dtype
        to_locations, to_weights = (
            torch.full(x.shape, torch.nan, dtype=wide) for x in self.kept[1:3]
        )
        to_reference = (
            None if reference is None else torch.zeros(value.shape[2], *reference.shape, dtype=wide)
        )
        to_value = None if ordered else torch.zeros(value.shape, dtype=wide)
        cells = torch.full(weights.shape, -1, dtype=torch.int32) if ordered else None
        shares = torch.full((*weights.shape, 3), torch.nan, dtype=wide) if ordered else None
        self.library.emulate_backward(
            *call,
            pointers(grad, to_value, to_locations, to_weights, to_reference, cells, shares),
        )
        if ordered:
            to_value = self.collect(call, grad, value, shapes, cells, shares)
        results = [to_value.to(value.dtype), to_locations, to_weights]
        return results if reference is None else [*results, to_reference.sum(0)]

    def collect(self, call, grad, value, shapes, cells, shares):
        gradient = torch.full(value.shape, torch.nan).to(value.dtype)
        count = value.shape[2] * sum((h + 1) * (w + 1) for h, w in shapes)
        assert int(cells.min()) >= 0
        assert int(cells.max()) <= count
        for image in range(value.shape[0]):
            keys, order = torch.sort(cells[image].flatten(), stable=True)
            starts = torch.full((count + 1,), -1)
            self.library.emulate_find_cells(
                pointer(keys), ctypes.c_int64(len(keys)), ctypes.c_int64(count + 1), pointer(starts)
            )
            assert torch.equal(starts, torch.searchsorted(keys, torch.arange(count + 1)))
            self.library.emulate_collect(
                *call[:3],
                pointer(grad),
                pointer(shares),
                ctypes.c_int64(image),
                pointer(order),
                pointer(starts),
                pointer(gradient),
            )
        return gradient


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Emulator:
    folder = tmp_path_factory.mktemp("cuda_emulation")
    path = compiled_emulation("kernels.cpp", "ms_deform_attn", folder)
    return Emulator(path)


def cases() -> list[Case]:
    """Return some cases of every kind of kernel: usual sizes, vectors, partial passes, scalars."""
    chosen = [usual_case(0), usual_case(1)]
    for seed, width in ((1, 64), (2, 16), (3, 7), (4, 71), (5, 40), (10, 8), (30, 96)):
        case = random_case(seed, width=width, dtype=torch.float32)
        chosen.append(
            Case(
                case.shapes,
                case.value[:, :, :3].contiguous(),
                case.locations[:, :9, :3].contiguous(),
                case.weights[:, :9, :3].contiguous(),
            )
        )
    return chosen


def incoming(case: Case) -> torch.Tensor:
    shape = (*case.locations.shape[:2], case.value.shape[2] * case.value.shape[3])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=case.value.dtype)


def test_forward_matches_oracle(emulator) -> None:
    for case in cases():
        exact = oracle(case.to(torch.float64))
        assert relative(emulator.forward(case.shapes, *case.tensors), exact) <= 2e-5
    double = random_case(6, width=19)
    assert relative(emulator.forward(double.shapes, *double.tensors), oracle(double)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_forward_and_backward(emulator, dtype: torch.dtype) -> None:
    for case in cases():
        low = Case(case.shapes, case.value.to(dtype), case.locations, case.weights)
        grad = incoming(low)
        exact = Case(case.shapes, low.value.float(), case.locations, case.weights)

        def run(*x, shapes=low.shapes):
            return ms_deform_attn(x[0], shapes, *x[1:])

        with use_reference():
            expected = run(*exact.tensors)
            expected_gradients = gradients(run, exact.tensors, grad.float())
        rounding = 2**-8 if dtype == torch.bfloat16 else 2**-10
        actual = emulator.forward(low.shapes, *low.tensors)
        torch.testing.assert_close(actual.float(), expected, rtol=rounding, atol=1e-4)
        for ordered in (False, True):
            actual = emulator.backward(grad, low.shapes, *low.tensors, ordered=ordered)
            for a, b in zip(actual, expected_gradients, strict=True):
                torch.testing.assert_close(a.float(), b, rtol=rounding, atol=2e-3)


@pytest.mark.parametrize("ordered", [False, True])
def test_backward_matches_autograd(emulator, ordered: bool) -> None:
    for case in cases():
        case = off_kinks(case)
        grad = incoming(case)

        def run(*x, shapes=case.shapes):
            return ms_deform_attn(x[0], shapes, *x[1:])

        with use_reference():
            expected = gradients(run, case.to(torch.float64).tensors, grad.double())
        actual = emulator.backward(grad, case.shapes, *case.tensors, ordered=ordered)
        for a, b in zip(actual, expected, strict=True):
            assert relative(a, b) <= 1e-4


@pytest.mark.parametrize("reference_width", [2, 4])
def test_the_fused_form_equals_the_plain_one(emulator, reference_width: int) -> None:
    for seed in (1, 2, 3, 5):
        value, shapes, reference, offsets, logits = fused_case(seed, reference_width)
        usual = usual_case(seed)
        if seed == 2:  # the usual sizes, in the fused form
            shapes, value, offsets, logits = (
                usual.shapes,
                usual.value,
                usual.locations * 5,
                usual.weights,
            )
            reference = torch.rand(*offsets.shape[:2], 4, reference_width)
        value, reference, offsets, logits = (
            x.double() for x in (value, reference[:, :9], offsets[:, :9], logits[:, :9])
        )

        def run(*x, shapes=shapes):
            return ms_deform_attn_fused(x[0], shapes, *x[1:])

        tensors = [value, reference, offsets, logits]
        with use_reference():
            exact = run(*tensors)
            grad = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).double()
            exact_gradients = gradients(run, tensors, grad)
        for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-3)):
            value, reference, offsets, logits = (x.to(dtype) for x in tensors)
            actual = emulator.forward(shapes, value, offsets, logits, reference)
            assert relative(actual, exact) <= min(bound, 2e-5)
            for ordered in (False, True):
                to_value, to_offsets, to_logits, to_reference = emulator.backward(
                    grad.to(dtype), shapes, value, offsets, logits, reference, ordered
                )
                for a, b in zip(
                    (to_value, to_reference, to_offsets, to_logits), exact_gradients, strict=True
                ):
                    assert relative(a, b) <= bound


def test_locations_that_are_not_finite_contribute_nothing(emulator) -> None:
    for case in cases():
        case = odd_locations(case)
        exact = oracle(case.to(torch.float64))
        assert relative(emulator.forward(case.shapes, *case.tensors), exact) <= 2e-5
        grad = incoming(case)
        for ordered in (False, True):
            to_value, to_locations, to_weights = emulator.backward(
                grad, case.shapes, *case.tensors, ordered=ordered
            )
            odd = ~case.locations.isfinite().all(-1)
            assert (to_locations[odd] == 0).all()
            assert (to_weights[odd] == 0).all()
            assert to_value.isfinite().all()
            assert to_locations.isfinite().all()


def test_values_and_weights_that_are_not_finite_reach_exactly_what_samples_them(emulator) -> None:
    for odd in (torch.nan, torch.inf):
        for case in cases():
            case = odd_locations(case)
            g = torch.Generator().manual_seed(0)
            value = torch.where(torch.rand(case.value.shape, generator=g) < 0.01, odd, case.value)
            weights = torch.where(
                torch.rand(case.weights.shape, generator=g) < 0.01, torch.nan, case.weights
            )
            poisoned = Case(case.shapes, value, case.locations, weights)
            with use_reference():
                expected = ms_deform_attn(value, case.shapes, case.locations, weights)
            actual = emulator.forward(case.shapes, *poisoned.tensors)
            assert torch.equal(actual.isnan(), expected.isnan())
            assert torch.equal(actual.isinf(), expected.isinf())
