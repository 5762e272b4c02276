"""Checks of deformable attention that the suite runs on few seeds and the nightly run on many."""

import torch

from tests.ops.cases import Case, odd_locations, off_kinks, oracle, random_case, relative
from tokendetr.ops import ms_deform_attn, ms_deform_attn_reference, use_reference


def run(case: Case) -> torch.Tensor:
    return ms_deform_attn(case.value, case.shapes, case.locations, case.weights)


def check_against_oracle(seeds: range) -> None:
    for seed in seeds:
        case = random_case(seed)
        expected = oracle(case)
        assert relative(run(case), expected) <= 1e-12, seed
        with use_reference():
            assert relative(run(case), expected) <= 1e-12, seed
        assert relative(run(case.to(torch.float32)), expected) <= 2e-5, seed
        rounded = case.to(torch.bfloat16)
        mixed = Case(case.shapes, rounded.value, case.locations.float(), case.weights.float())
        assert (
            relative(
                run(mixed), oracle(Case(case.shapes, rounded.value.double(), *case.tensors[1:]))
            )
            <= 2e-2
        )


def grid_sample_form(case: Case) -> torch.Tensor:
    """Compute in the usual PyTorch form, every step in the dtype of the case."""
    samples, start = [], 0
    for level, (h, w) in enumerate(case.shapes):
        image = case.value[:, start : start + h * w].permute(0, 2, 3, 1).flatten(0, 1)
        grid = (2 * case.locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples.append(
            torch.nn.functional.grid_sample(image.unflatten(-1, (h, w)), grid, align_corners=False)
        )
        start += h * w
    weights = case.weights.transpose(1, 2).flatten(0, 1).flatten(2)[:, None]
    summed = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1)
    return summed.unflatten(0, case.value.shape[::2][:2]).flatten(1, 2).transpose(1, 2)


def check_half_precision(dtype: torch.dtype, seeds: range) -> None:
    compared = finite = total = 0
    for seed in seeds:
        low = random_case(seed).to(dtype)
        exact = oracle(low.to(torch.float64))
        if exact.numel() == 0:
            continue
        ours, theirs = run(low), grid_sample_form(low)
        assert ours.isfinite().all()
        usable = theirs.isfinite()  # PyTorch's float16 form overflows here and there
        finite, total = finite + int(usable.sum()), total + usable.numel()
        if usable.any():
            bound = 2 * relative(theirs[usable], exact[usable]) + 1e-5
            assert relative(ours[usable], exact[usable]) <= bound, seed
            compared += 1
    assert compared >= len(seeds) * 3 // 4
    assert finite >= 0.9 * total


def check_odd_locations(dtype: torch.dtype, seeds: range) -> None:
    for seed in seeds:
        width = 32 if seed % 2 else None  # whole vectors may be read in place
        case = odd_locations(random_case(seed, width=width, dtype=dtype))
        expected = oracle(case.to(torch.float64))
        assert expected.isfinite().all()
        assert relative(run(case), expected) <= 2e-5
        assert (
            relative(ms_deform_attn_reference(case.value, case.shapes, *case.tensors[1:]), expected)
            <= 2e-5
        )


def check_poisoned(seeds: range) -> None:
    for seed in seeds:
        width = 32 if seed % 2 else None  # whole vectors may be read in place
        case = odd_locations(random_case(seed, width=width, dtype=torch.float32))
        g = torch.Generator().manual_seed(seed)
        value = torch.where(
            torch.rand(case.value.shape, generator=g) < 0.002, torch.nan, case.value
        )
        weights = torch.where(
            torch.rand(case.weights.shape, generator=g) < 0.002, torch.nan, case.weights
        )
        poisoned = Case(case.shapes, value, case.locations, weights)
        with use_reference():
            expected = run(poisoned)
        assert torch.equal(run(poisoned).isnan(), expected.isnan())


def check_gradients(width: int, seeds: range) -> None:
    for seed in seeds:
        case = off_kinks(random_case(seed, width=width))
        queries = slice(0, 2)
        inputs = [
            case.value[:1, :, :2].clone(),
            case.locations[:1, queries, :2].clone(),
            case.weights[:1, queries, :2].clone(),
        ]
        leaves = [x.requires_grad_() for x in inputs]
        torch.autograd.gradcheck(
            lambda *x, shapes=case.shapes: ms_deform_attn(x[0], shapes, *x[1:]),
            leaves,
            fast_mode=True,
        )
