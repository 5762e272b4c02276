"""Gradients of packed attention: gradcheck, against autograd in float64, the same bits each run."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.ops.cases import relative
from tests.ops.packed_cases import (
    PackedCase,
    incoming,
    packed_gradients,
    packed_oracle,
    random_packed,
)
from tokendetr.ops import use_reference


def test_gradcheck() -> None:
    for seed in (1, 2, 3, 4, 5, 6, 8, 10, 13):
        case = random_packed(seed, slots=11, width=5)
        leaves = [x.clone().requires_grad_() for x in case.leaves]
        torch.autograd.gradcheck(
            lambda *x, case=case: case.with_leaves(list(x)).run(), leaves, fast_mode=True
        )


def check_against_autograd(case: PackedCase) -> None:
    grad = incoming(case)
    expected = packed_gradients(case, grad, packed_oracle)
    with use_reference():
        for a, b in zip(packed_gradients(case, grad), expected, strict=True):
            assert relative(a, b) <= 1e-11
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 5e-5)):
        actual = packed_gradients(case.to(dtype), grad.to(dtype))
        for a, b in zip(actual, expected, strict=True):
            assert relative(a, b) <= bound


@pytest.mark.parametrize("first", [1, 25])
def test_matches_autograd_through_the_oracle(first: int) -> None:
    for seed in range(first, first + 24):
        if seed % 16:
            check_against_autograd(random_packed(seed))


def test_matches_autograd_for_long_containers_and_whole_vectors() -> None:
    shapes = [(1, 1), (16, 16), (49, 32), (64, 64), (65, 24), (130, 8), (200, 40)]
    for seed, (slots, width) in enumerate(shapes, 1):
        check_against_autograd(random_packed(seed, slots=slots, width=width))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    for seed in range(1, 25):
        if seed % 16 == 0:
            continue
        case = random_packed(seed).to(torch.float32).to(dtype, biases=False)
        grad = incoming(case)
        expected = packed_gradients(case.to(torch.float64), grad.double(), packed_oracle)
        for a, b in zip(packed_gradients(case, grad), expected, strict=True):
            rounded = relative(b.to(a.dtype), b)
            assert relative(a, b) <= 2 * rounded + 1e-5


def test_padding_gives_and_gets_no_gradient() -> None:
    for seed in (1, 5, 9, 13):
        case = random_packed(seed, dtype=torch.float32)
        padding = case.segment < 0
        dirty = [x.masked_fill(padding[..., None, None], torch.nan) for x in case.leaves[:3]]
        grad = incoming(case).masked_fill(padding[..., None, None], torch.nan)
        actual = packed_gradients(case.with_leaves([*dirty, *case.leaves[3:]]), grad)
        clean = packed_gradients(case, incoming(case))
        for a, b in zip(actual, clean, strict=True):
            assert torch.equal(a, b)
        for a in actual[:3]:
            assert (a[padding] == 0).all()
        if case.key_bias is not None:
            assert (actual[-1][padding] == 0).all()


def test_only_what_is_asked_for() -> None:
    case = random_packed(1)
    table = case.table.clone().requires_grad_()
    expected = packed_gradients(case, incoming(case))
    actual = torch.autograd.grad(replace(case, table=table).run(), table, incoming(case))
    assert torch.equal(actual[0], expected[3])
    key = case.key.clone().requires_grad_()
    actual = torch.autograd.grad(replace(case, key=key).run(), key, incoming(case))
    assert torch.equal(actual[0], expected[1])


def test_biases_in_half_precision_get_gradients_of_their_dtype() -> None:
    case = random_packed(1).to(torch.bfloat16)
    wide = packed_gradients(
        replace(case, table=case.table.float(), key_bias=case.key_bias.float()), incoming(case)
    )
    for a, b in zip(packed_gradients(case, incoming(case)), wide, strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())


def test_strided_gradient() -> None:
    case = random_packed(2, dtype=torch.float32)
    grad = incoming(case)
    strided = grad.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    scalar = grad[:1, :1, :1, :1].expand(grad.shape)
    for one, other in ((strided, grad), (scalar, scalar.contiguous())):
        for a, b in zip(packed_gradients(case, one), packed_gradients(case, other), strict=True):
            assert torch.equal(a, b)


SCRIPT = """
import sys, torch
torch.set_num_threads(int(sys.argv[2]))
from tests.ops.packed_cases import incoming, packed_gradients, random_packed
results = []
for seed in (1, 2, 4, 5, 7, 11):
    case = random_packed(seed, dtype=torch.float32)
    case = case.with_leaves([*[x.repeat(30, 1, 1, 1) for x in case.leaves[:3]], *case.leaves[3:]])
    many = lambda x: None if x is None else x.repeat(30, *[1] * (x.dim() - 1))
    object.__setattr__(case, "segment", many(case.segment))
    object.__setattr__(case, "position", many(case.position))
    object.__setattr__(case, "key_bias", many(case.key_bias))
    for _ in range(2):
        results += [case.run(), *packed_gradients(case, incoming(case))]
torch.save(results, sys.argv[1])
"""


def test_the_same_bits_every_time_on_any_number_of_threads(tmp_path) -> None:
    found = []
    for threads in ("1", "2", "3"):
        path = tmp_path / threads
        subprocess.run([sys.executable, "-c", SCRIPT, str(path), threads], check=True)
        found.append(torch.load(path))
    for results in found[1:]:
        for a, b in zip(results, found[0], strict=True):
            assert torch.equal(a, b)
    half = len(found[0])
    assert half > 40


def test_memory_does_not_grow_with_the_pairs_of_slots() -> None:
    slots = 1500
    case = random_packed(1, slots=slots, width=16, dtype=torch.float32)
    case = case.with_leaves([x.requires_grad_() for x in case.leaves])
    with torch.profiler.profile(profile_memory=True) as profile:
        case.run().sum().backward()
    events = profile.profiler.kineto_results.events()
    taken = sum(max(event.nbytes(), 0) for event in events if event.name() == "[memory]")
    containers, _, heads, _ = case.query.shape
    assert case.query.nbytes < taken < containers * heads * slots * slots * 4 / 4
