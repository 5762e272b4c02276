"""Compiled token merging against the chains of PyTorch operators that it replaces, bit for bit."""

import math

import pytest
import torch

from tokendetr.compat.torch_private import TorchDispatchMode
from tokendetr.ops import use_reference
from tokendetr.ops.token_merging import (
    choose_windows_kernel,
    match_tokens_kernel,
    merged_order_kernel,
    merges_by_kernel,
)
from tokendetr.tokens import ChosenWindows, match_by_affinity, merged_order
from tokendetr.tokens.window_choice import choose_windows

ODD = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, torch.finfo(torch.float32).min])


def random_scores(shape, generator):
    """Return scores of which many tie, and a few are not finite."""
    score = torch.randint(0, 4, shape, generator=generator) / 4
    odd = ODD[torch.randint(0, len(ODD), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.2, odd, score)


def assert_same(actual, expected):
    if not isinstance(expected, torch.Tensor):
        assert actual == expected
        return
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_the_kernels_are_built():
    assert merges_by_kernel(torch.zeros(1))


@pytest.mark.parametrize("seed", range(20))
def test_the_same_windows_are_chosen(seed):
    g = torch.Generator().manual_seed(seed)
    classes, counts = [], []
    for _ in range(int(torch.randint(1, 6, (), generator=g))):
        number, cells = torch.randint(1, 9, (2,), generator=g).tolist()
        classes.append((number, cells))
        counts.append(int(torch.randint(0, number + 3, (), generator=g)))
    windows, widest = sum(number for number, _ in classes), max(cells for _, cells in classes)
    token = torch.randperm(windows * widest, generator=g).view(windows, widest)
    arguments = (random_scores((windows,), g), token, tuple(classes), tuple(counts))
    chosen = choose_windows(*arguments)
    with use_reference():
        expected = choose_windows(*arguments)
    assert chosen.sizes == expected.sizes
    assert torch.equal(chosen.member_E, expected.member_E)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_tokens_are_matched(seed):
    g = torch.Generator().manual_seed(seed)
    batch, tokens, neighbors = torch.randint(1, 9, (3,), generator=g).tolist()
    if seed % 4 == 0:
        tokens *= 30
    kinds = torch.randn(max(1, tokens // 2), 5, generator=g)
    x = kinds[torch.randint(0, len(kinds), (batch, tokens), generator=g)]
    x[0, 0] = math.nan if seed % 5 == 0 else 0.0
    sizes = torch.randint(1, tokens + 1, (batch,), generator=g).tolist()
    padded = seed % 2 == 1
    valid = torch.arange(tokens) < torch.tensor(sizes)[:, None]
    order = torch.stack([torch.randperm(tokens, generator=g) for _ in range(batch)])
    arguments = {
        "important_counts": torch.randint(0, tokens + 1, (batch,), generator=g).tolist(),
        "valid_BN": valid if padded else None,
        "valid_counts": sizes if padded else [tokens] * batch,
        "num_neighbors": neighbors,
        "min_cosine": 0.01,
        "score_BN": random_scores((batch, tokens), g) if seed % 3 == 0 else None,
        "order_BN": order if seed % 7 else None,
    }
    match = match_by_affinity(x, **arguments)
    with use_reference():
        expected = match_by_affinity(x, **arguments)
    for name, value in vars(expected).items():
        assert_same(getattr(match, name), value)


def random_order(seed):
    """Return arguments of an order: disjoint windows of real tokens, and a level behind them."""
    g = torch.Generator().manual_seed(seed)
    batch, coarsest = torch.randint(1, 5, (2,), generator=g).tolist()
    cells = sorted(set(torch.randint(1, 6, (2,), generator=g).tolist()))
    number = torch.randint(0, 3, (len(cells),), generator=g).tolist()
    windowed = sum(c * n for c, n in zip(cells, number, strict=True))
    before = -(-windowed // batch) + 3
    tokens = before + coarsest
    valid = torch.ones(batch, tokens, dtype=torch.bool)
    flat = torch.arange(batch * tokens).view(batch, tokens)[:, :before].flatten()
    member = flat[torch.randperm(len(flat), generator=g)][:windowed]
    last = [n for n in range(tokens) if n < before and n not in set((member % tokens).tolist())]
    valid[-1, last[:1]] = seed % 2 == 0
    sizes = tuple(pair for pair in zip(cells, number, strict=True) if pair[1])
    important = torch.rand(batch, coarsest, generator=g) < 0.6
    important[:, 0] = True
    counts = important.sum(dim=1).tolist()
    absorber = important.int().argsort(dim=1, descending=True, stable=True)[:, : max(counts)]
    options = {"windows": ChosenWindows(member, sizes) if seed % 5 else None}
    if seed % 3:
        options |= {"important_BU": important}
        if seed % 3 == 1:
            options |= {"absorber_BA": absorber, "absorber_counts": counts}
    return valid, int(torch.randint(1, tokens + 1, (), generator=g)), options


@pytest.mark.parametrize("seed", range(30))
def test_a_merged_sequence_has_the_same_order(seed):
    valid, length, options = random_order(seed)
    order = merged_order(valid, length, **options)
    with use_reference():
        expected = merged_order(valid, length, **options)
    for name, value in vars(expected).items():
        assert_same(getattr(order, name), value)


def test_operators_that_are_traced_or_counted_are_pytorchs_own():
    class Seen(TorchDispatchMode):
        names: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.name())
            return func(*args, **(kwargs or {}))

    with Seen():
        match_by_affinity(
            torch.randn(1, 5, 3),
            important_counts=[2],
            valid_BN=None,
            valid_counts=[5],
            num_neighbors=2,
            min_cosine=0.1,
        )
    assert "aten::sort.stable" in Seen.names
    assert not any(name.startswith("tokendetr::") for name in Seen.names)


def _calls():
    order = torch.tensor([[2, 0, 1]])
    valid = torch.tensor([[True, True, False]])
    token = torch.arange(6).view(3, 2)
    yield "choose_windows", (torch.rand(3), token, [2, 1], [1, 2], [1, 1])
    cosine = torch.rand(1, 3, 3)
    yield "match_tokens", (cosine, order, valid, torch.rand(1, 3), [2], [1], 2, 0.1)
    yield "match_tokens", (cosine, order, None, None, [3], [2], 1, 0.1)
    sequence = torch.ones(1, 6, dtype=torch.bool)
    member = torch.tensor([0, 1, 2])
    important = torch.tensor([[True, False]])
    yield "merged_order", (sequence, member, [1, 2], [1, 1], important, order[:, 1:2], [1], 4)
    yield "merged_order", (sequence, member[:0], [], [], None, None, [], 6)


@pytest.mark.parametrize(("name", "arguments"), list(_calls()))
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.tokendetr, name), arguments)


def test_arguments_that_do_not_fit_are_refused_by_name():
    score, token = torch.rand(3), torch.arange(6).view(3, 2)
    for name, arguments in {
        "score must be float32": (score.double(), token, [3], [2], [1]),
        "token must have shape": (score, token[0], [3], [2], [1]),
        "cells must lie": (score, token, [3], [3], [1]),
        "counts must lie": (score, token, [3], [2], [4]),
        "the classes have 2 windows": (score, token, [2], [2], [1]),
    }.items():
        with pytest.raises(ValueError, match=name):
            choose_windows_kernel(*arguments)
    cosine, order = torch.rand(1, 3, 3), torch.tensor([[0, 1, 2]])
    for name, arguments in {
        "cosine must have shape": (cosine[:, :2], order, None, None, [3], [1], 1, 0.1),
        "order must lie in": (cosine, order + 1, None, None, [3], [1], 1, 0.1),
        "counts must lie": (cosine, order, None, None, [3], [4], 1, 0.1),
        "valid must be bool": (cosine, order, order, None, [3], [1], 1, 0.1),
        "neighbors must lie": (cosine, order, None, None, [3], [1], 4, 0.1),
    }.items():
        with pytest.raises(ValueError, match=name):
            match_tokens_kernel(*arguments)
    valid, member = torch.ones(1, 6, dtype=torch.bool), torch.tensor([0, 1])
    important, absorber = valid[:, :2], torch.tensor([[1]])
    for name, arguments in {
        "member must lie in": (valid, member + 5, [2], [1], None, None, [], 6),
        "member must have shape": (valid, member, [2], [2], None, None, [], 6),
        "length must lie": (valid, member, [2], [1], None, None, [], 7),
        "absorber must lie in": (valid, member, [2], [1], important, absorber + 1, [1], 5),
        "absorber_counts must lie": (valid, member, [2], [1], important, absorber, [2], 5),
        "absorber needs important": (valid, member, [2], [1], None, absorber, [1], 5),
    }.items():
        with pytest.raises(ValueError, match=name):
            merged_order_kernel(*arguments)
