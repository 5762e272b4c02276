"""Packed attention's CUDA kernels on a GPU: against the CPU kernels and the oracle."""

from dataclasses import replace

import pytest
import torch

from tests.ops.cases import relative
from tests.ops.gpu_cases import BOUND, DTYPES
from tests.ops.packed_cases import (
    PackedCase,
    arguments,
    incoming,
    packed_gradients,
    packed_oracle,
    random_packed,
)

pytestmark = pytest.mark.cuda


def on_gpu(case: PackedCase) -> PackedCase:
    position = None if case.position is None else case.position.cuda()
    moved = case.with_leaves([x.cuda() for x in case.leaves])
    return replace(moved, segment=case.segment.cuda(), position=position)


def cases(dtype: torch.dtype) -> list[PackedCase]:
    """Return random sizes, the usual ones, and containers of many tiles."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = [(49, 32), (64, 64), (200, 40), (130, 256)]
    chosen = [random_packed(seed) for seed in range(1, 25)]
    chosen += [random_packed(n, slots=t, width=d) for n, (t, d) in enumerate(shapes, 1)]
    return [case.to(wide).to(dtype, biases=False) for case in chosen]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_cpu_and_oracle(dtype: torch.dtype) -> None:
    for case in cases(dtype):
        grad = incoming(case)
        moved = on_gpu(case)
        actual = [moved.run(), *packed_gradients(moved, grad.cuda())]
        cpu = [case.run(), *packed_gradients(case, grad)]
        exact = case.to(torch.float64)
        expected = [packed_oracle(exact), *packed_gradients(exact, grad.double(), packed_oracle)]
        for ours, theirs, true in zip(actual, cpu, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert relative(ours.cpu(), true) <= BOUND[dtype]
            assert relative(ours.cpu(), theirs) <= BOUND[dtype]


def test_gradcheck() -> None:
    for seed in (1, 2, 3, 4, 5, 6, 8, 10, 13):
        case = on_gpu(random_packed(seed, slots=11, width=5))
        leaves = [x.clone().requires_grad_() for x in case.leaves]
        torch.autograd.gradcheck(
            lambda *x, case=case: case.with_leaves(list(x)).run(), leaves, fast_mode=True
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    for case in cases(dtype)[-4:]:
        moved, grad = on_gpu(case), incoming(case).cuda()
        first = [moved.run(), *packed_gradients(moved, grad)]
        for _ in range(10):
            again = [moved.run(), *packed_gradients(moved, grad)]
            assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_what_is_not_finite_stays_in_its_segment() -> None:
    case = on_gpu(random_packed(1, slots=49, width=32, dtype=torch.float32))
    clean = case.run()
    poisoned = (case.segment == case.segment.max()) | (case.segment < 0)
    dirty = [x.masked_fill(poisoned[..., None, None], torch.nan) for x in case.leaves[:3]]
    output = case.with_leaves([*dirty, *case.leaves[3:]]).run()
    assert torch.equal(output[~poisoned], clean[~poisoned])
    assert (output[case.segment < 0] == 0).all()


def test_views_and_addresses_that_are_not_aligned() -> None:
    case = on_gpu(random_packed(1, slots=49, width=32, dtype=torch.float32))
    expected = case.run()
    together = torch.stack(case.leaves[:3], dim=3)
    views = case.with_leaves([*together.unbind(3), *case.leaves[3:]])
    assert torch.equal(views.run(), expected)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in case.leaves[:3]]
    assert torch.equal(case.with_leaves([*shifted, *case.leaves[3:]]).run(), expected)


def test_opcheck_passes_and_too_wide_heads_are_refused() -> None:
    for seed in (1, 3, 16):
        case = on_gpu(random_packed(seed, dtype=torch.float32))
        case = case.with_leaves([x.requires_grad_() for x in case.leaves])
        torch.library.opcheck(torch.ops.tokendetr.packed_attention, arguments(case))
    wide = on_gpu(random_packed(3, slots=2, width=513, dtype=torch.float32))
    with pytest.raises(ValueError, match="query"):
        wide.run()
