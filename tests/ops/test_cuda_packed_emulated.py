"""Packed attention's CUDA kernels, compiled for the CPU with emulated warps."""

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ops.cases import relative
from tests.ops.emulation import STORAGE, compiled_emulation, numbers, pointer, pointers
from tests.ops.packed_cases import (
    PackedCase,
    incoming,
    packed_gradients,
    packed_oracle,
    random_packed,
)


class Emulator:
    """The CUDA binding around the emulated kernels."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.emulated_parts.restype = ctypes.c_int64

    def call(self, case: PackedCase, *more: torch.Tensor) -> tuple:
        dtype, width = case.query.dtype, case.query.shape[3]
        bytes_wide = width * case.query.element_size()
        wide = dtype != torch.float64 and bytes_wide % 16 == 0  # as load_bytes() has it
        sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        table, key_bias = (
            None if x is None else x.to(sum_dtype) for x in (case.table, case.key_bias)
        )
        reach = 0 if table is None else table.shape[1] // 2
        scale = width**-0.5 if case.scale is None else case.scale
        tensors = (case.query, case.key, case.value)
        self.kept = table, key_bias
        return (
            numbers([*case.query.shape, reach, STORAGE[dtype], wide]),
            ctypes.c_double(scale),
            pointers(*tensors, case.segment, case.position, table, key_bias),
            numbers([s for x in (*tensors, *more) for s in x.stride()[:3]]),
        )

    def forward(self, case: PackedCase) -> torch.Tensor:
        output = torch.full(case.query.shape, torch.nan).to(case.query.dtype)
        self.library.emulate_forward(*self.call(case), pointer(output))
        return output

    def backward(self, case: PackedCase, grad: torch.Tensor) -> list[torch.Tensor]:
        call = self.call(case, grad)
        table, key_bias = self.kept
        results = [torch.full(case.query.shape, torch.nan).to(case.query.dtype) for _ in range(3)]
        wide = torch.float64 if case.query.dtype == torch.float64 else torch.float32
        containers, slots, heads, _ = case.query.shape
        statistics = torch.full((containers, heads, slots, 3), torch.nan, dtype=wide)
        parts = self.library.emulated_parts(call[0])
        to_table = None if table is None else torch.zeros(parts, *table.shape, dtype=wide)
        to_bias = (
            None
            if key_bias is None
            else torch.full((containers, heads, slots), torch.nan, dtype=wide)
        )
        self.library.emulate_backward(
            *call, pointers(grad, *results, statistics, to_table, to_bias)
        )
        if to_table is not None:
            results.append(to_table.sum(0))
        if to_bias is not None:
            results.append(to_bias.sum(1))
        return results


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Emulator:
    folder = tmp_path_factory.mktemp("packed_emulation")
    return Emulator(compiled_emulation("packed_kernels.cpp", "packed_attention", folder))


def contiguous(case: PackedCase) -> PackedCase:
    return replace(
        case.with_leaves([x.contiguous() for x in case.leaves]), segment=case.segment.contiguous()
    )


def cases() -> list[PackedCase]:
    """Return every kind of lane: whole and partial vectors, one to eight lanes per row."""
    widths = (1, 7, 8, 16, 20, 32, 33, 64, 72, 128)
    return [
        contiguous(random_packed(seed, slots=(5, 19, 33)[seed % 3], width=width))
        for seed, width in enumerate(widths, 1)
    ]


def test_forward_matches_oracle(emulator) -> None:
    for case in cases():
        exact = packed_oracle(case)
        assert relative(emulator.forward(case), exact) <= 1e-12
        assert relative(emulator.forward(case.to(torch.float32)), exact) <= 2e-5


def test_backward_matches_autograd(emulator) -> None:
    for case in cases():
        grad = incoming(case)
        expected = packed_gradients(case, grad, packed_oracle)
        for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 5e-5)):
            actual = emulator.backward(case.to(dtype), grad.to(dtype))
            for a, b in zip(actual, expected, strict=True):
                assert relative(a, b) <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(emulator, dtype: torch.dtype) -> None:
    for case in cases():
        low = case.to(torch.float32).to(dtype, biases=False)
        grad = incoming(low)
        exact = low.to(torch.float64)
        results = [emulator.forward(low), *emulator.backward(low, grad)]
        expected = [packed_oracle(exact), *packed_gradients(exact, grad.double(), packed_oracle)]
        for a, b in zip(results, expected, strict=True):
            assert relative(a, b) <= 2 * relative(b.to(a.dtype), b) + 5e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensor_cores(emulator, dtype: torch.dtype) -> None:
    for seed, slots in ((1, 16), (2, 49), (3, 70), (5, 7), (7, 49)):
        case = contiguous(random_packed(seed, slots=slots, width=32))
        low = case.to(torch.float32).to(dtype, biases=False)
        exact = packed_oracle(low.to(torch.float64))
        assert relative(emulator.forward(low), exact) <= 1.05 * relative(exact.to(dtype), exact)
        padding = (low.segment < 0)[..., None, None]
        dirty = [x.masked_fill(padding, torch.nan) for x in low.leaves[:3]]
        poisoned = low.with_leaves([*dirty, *low.leaves[3:]])
        assert torch.equal(emulator.forward(poisoned), emulator.forward(low))


def test_strided_input_gives_the_same(emulator) -> None:
    case = random_packed(1, slots=9, width=16, dtype=torch.float32)
    together = torch.stack(case.leaves[:3], dim=3)
    views = case.with_leaves([*together.unbind(3), *case.leaves[3:]])
    grad = incoming(case)
    strided = grad.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(emulator.forward(views), emulator.forward(case))
    for a, b in zip(emulator.backward(views, strided), emulator.backward(case, grad), strict=True):
        assert torch.equal(a, b)


def test_what_is_not_finite_stays_in_its_segment(emulator) -> None:
    case = random_packed(1, slots=19, width=8, dtype=torch.float32)
    clean, grad = emulator.forward(case), incoming(case)
    gradients = emulator.backward(case, grad)
    for odd in (torch.nan, torch.inf):
        poisoned = (case.segment == case.segment.max()) | (case.segment < 0)
        dirty = [x.masked_fill(poisoned[..., None, None], odd) for x in case.leaves[:3]]
        dirty_case = case.with_leaves([*dirty, *case.leaves[3:]])
        output = emulator.forward(dirty_case)
        assert torch.equal(output[~poisoned], clean[~poisoned])
        assert (output[case.segment < 0] == 0).all()
        for a, b in zip(emulator.backward(dirty_case, grad)[:3], gradients[:3], strict=True):
            assert torch.equal(a[~poisoned], b[~poisoned])
            assert (a[case.segment < 0] == 0).all()


def test_keys_of_no_weight_and_extreme_logits(emulator) -> None:
    case = random_packed(1, slots=19, width=8)
    extreme = replace(case, scale=1e4 / float(case.query.abs().amax() * case.key.abs().amax()))
    assert relative(emulator.forward(extreme), packed_oracle(extreme)) <= 1e-11
    closed = replace(case, key_bias=torch.full_like(case.key_bias, -torch.inf))
    assert (emulator.forward(closed) == 0).all()
    for gradient in emulator.backward(closed, incoming(case)):
        assert (gradient == 0).all()
