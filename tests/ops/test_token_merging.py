"""Compiled token merging against the chains of PyTorch operators that it replaces, bit for bit."""

import math

import pytest
import torch

from tokendetr.compat.torch_private import TorchDispatchMode
from tokendetr.ops import use_reference
from tokendetr.ops.token_merging import (
    merge_tokens_kernel,
    merges_by_kernel,
    plan_merge_kernel,
    token_similarity_kernel,
)
from tokendetr.tokens import (
    CoarsestLevel,
    LevelLayout,
    LevelWindows,
    PlannedMerge,
    ScoredWindows,
    plan_merge,
    token_cosines,
    token_norms,
    token_similarity,
)

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


def random_merge(seed):
    """Return tokens, and the arguments of a plan for them: many scores and cosines tie."""
    g = torch.Generator().manual_seed(seed)
    number = lambda low, high: int(torch.randint(low, high, (), generator=g))  # noqa: E731
    shapes = ((number(4, 12), number(4, 12)), (number(1, 5), number(1, 30)))
    sizes = [shapes] + [
        tuple((number(1, height + 1), number(1, width + 1)) for height, width in shapes)
        for _ in range(seed % 3)
    ]
    layout = LevelLayout.from_valid_sizes(shapes, sizes)
    coarsest = layout.level_sizes[-1]
    kinds_BNC = torch.randn(40, 5, generator=g)
    x_BNC = kinds_BNC[torch.randint(0, 40, layout.valid_BN.shape, generator=g)]
    if seed % 5 == 0:
        x_BNC[0, -1] = math.nan
    windows = level = None
    kept = [sum(image) for image in layout.valid_counts]
    if seed % 4:
        divided = LevelWindows.of(layout, 0, number(1, 5))
        counts = tuple(number(0, each.count + 1) for each in divided.classes)
        windows = ScoredWindows(divided, random_scores(divided.first_S.shape, g), counts)
        for each, count in zip(divided.classes, counts, strict=True):
            kept[each.image] -= count * (each.cells - 1)
    if seed % 7:
        own = layout.split(x_BNC)[-1]
        existing = tuple(image[-1] for image in layout.valid_counts)
        important = tuple(number(1, count + 1) for count in existing)
        level = CoarsestLevel(
            cosine_BUU=token_cosines(own / token_norms(own)[..., None]),
            order_BU=torch.stack([torch.randperm(coarsest, generator=g) for _ in sizes]),
            valid_BU=layout.split(layout.valid_BN)[-1] if layout.may_have_padding else None,
            valid_counts=existing,
            important_counts=important,
            num_neighbors=number(1, 6),
            min_cosine=0.01,
            score_BU=random_scores((len(sizes), coarsest), g) if seed % 11 == 3 else None,
        )
        pairs = zip(kept, existing, important, strict=True)
        kept = [count - own + stay for count, own, stay in pairs]
    plan = {"windows": windows, "level": level, "absorbs": seed % 2 == 0}
    return x_BNC, layout, max(kept), plan


@pytest.mark.parametrize("seed", range(60))
def test_the_same_merge_is_planned_and_carried_out(seed):
    x_BNC, layout, length, arguments = random_merge(seed)
    plan = plan_merge(layout.valid_BN, length, **arguments)
    with use_reference():
        expected = plan_merge(layout.valid_BN, length, **arguments)
    for part, wanted in vars(expected).items():
        found = getattr(plan, part)
        assert type(found) is type(wanted)
        for name, value in vars(wanted).items() if wanted is not None else ():
            assert_same(getattr(found, name), value)
    token_map = PlannedMerge(
        plan,
        absorbs=arguments["absorbs"],
        valid_BK=None,
        num_all=layout.num_tokens,
        level_start=layout.level_starts[-1],
        rule="sum" if seed % 3 == 0 else "mean",
        locate="anchor",
        broadcast=False,
    )
    x_BNC = x_BNC.nan_to_num()  # in a product of matrices a NaN spreads to all that it is beside
    merged_BKC = token_map.reduce(x_BNC)
    with use_reference():
        torch.testing.assert_close(merged_BKC, token_map.reduce(x_BNC))


@pytest.mark.parametrize("channels", [3, 16, 40])
def test_similarities_are_those_of_the_plain_form(channels):
    g = torch.Generator().manual_seed(channels)
    shapes = ((9, 8), (5, 4), (3, 2))
    layout = LevelLayout.from_valid_sizes(shapes, [shapes, ((7, 8), (4, 2), (1, 2))])
    x_BNC = torch.randn(2, layout.num_tokens, channels, generator=g)
    x_BNC[:, 3] = 0.0
    x_BNC[0, 70:110] = x_BNC[0, 69]
    windows = LevelWindows.of_levels(layout, ((0, 3), (1, 2)))
    for divided, start in ((windows, layout.level_starts[-1]), (None, 0), (windows, 98)):
        found_S, unit_BUC = token_similarity(x_BNC, divided, start)
        with use_reference():
            expected_S, expected_BUC = token_similarity(x_BNC, divided, start)
        torch.testing.assert_close(unit_BUC, expected_BUC, rtol=1e-6, atol=1e-7)
        assert (found_S is None) == (divided is None)
        if expected_S is not None:
            torch.testing.assert_close(found_S, expected_S, rtol=1e-5, atol=1e-6)
    score_S, _ = token_similarity(x_BNC, windows, 0)
    equal = set(range(69, 110))
    alike = [s for s, own in enumerate(windows.token_SX.tolist()) if set(own) <= equal]
    of_size = {
        (cells, score_S[s].item())
        for s, cells in zip(alike, windows.cells_S[alike].tolist(), strict=True)
    }
    assert len(alike) > len(of_size) == len(windows.cells_S[alike].unique())


def test_merging_has_gradients_in_its_plain_form():
    x_BNC, layout, length, arguments = random_merge(1)
    x_BNC.requires_grad_(True)
    plan = plan_merge(layout.valid_BN, length, **arguments)
    token_map = PlannedMerge(
        plan,
        absorbs=False,
        valid_BK=None,
        num_all=layout.num_tokens,
        level_start=layout.level_starts[-1],
        rule="mean",
        locate="anchor",
        broadcast=False,
    )
    token_map.reduce(x_BNC).sum().backward()
    assert x_BNC.grad is not None
    assert x_BNC.grad.abs().sum() > 0


def test_operators_that_are_traced_or_counted_are_pytorchs_own():
    class Seen(TorchDispatchMode):
        names: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.name())
            return func(*args, **(kwargs or {}))

    _, layout, length, arguments = random_merge(1)
    with Seen():
        plan_merge(layout.valid_BN, length, **arguments)
    assert "aten::sort.stable" in Seen.names
    assert not any(name.startswith("tokendetr::") for name in Seen.names)


VALID = torch.ones(1, 8, dtype=torch.bool)
WINDOWS = {
    "score_S": torch.rand(3),
    "token_SX": torch.arange(6).view(3, 2),
    "number": [2, 1],
    "cells": [1, 2],
    "counts": [1, 1],
}
LEVEL = {
    "cosine_BUU": torch.rand(1, 3, 3),
    "order_BU": torch.tensor([[2, 0, 1]]),
    "valid_counts": [3],
    "important_counts": [2],
    "neighbors": 2,
    "min_cosine": 0.1,
    "absorbs": True,
}
MERGE = {
    "member_E": torch.tensor([0, 1]),
    "sizes": [(2, 1)],
    "window_slot_R": torch.tensor([0]),
    "neighbor_BUT": torch.tensor([[[1], [0]]]),
    "absorbs_BUT": torch.tensor([[[False], [True]]]),
    "absorber_A": torch.tensor([0]),
    "absorber_slot_A": torch.tensor([1]),
    "start": 6,
}


@pytest.mark.parametrize("given", [{}, WINDOWS, LEVEL, {**WINDOWS, **LEVEL, "absorbs": False}])
def test_opcheck_of_plans(given, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "tokendetr.ops.token_merging.operator.call_kernel",
        lambda operator, *arguments: seen.append((operator, arguments)),
    )
    plan_merge_kernel(VALID, 6, **given)
    torch.library.opcheck(*seen[0])


def test_opcheck_of_similarities():
    arguments = (torch.rand(2, 8, 20), torch.arange(6), [2, 1], [1, 4], 5)
    torch.library.opcheck(torch.ops.tokendetr.token_similarity, arguments)


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("x must be float32", {"x_BNC": torch.rand(1, 8, 4).double()}),
        ("x must have shape", {"x_BNC": torch.rand(8, 4)}),
        ("member must lie in", {"token_D": torch.arange(6) + 3}),
        ("member must have shape", {"sizes": [(1, 5)]}),
        ("start must lie", {"start": 9}),
    ],
)
def test_arguments_of_similarities_that_do_not_fit_are_refused_by_name(fault, changed):
    arguments = {"x_BNC": torch.rand(1, 8, 4), "token_D": torch.arange(6), "sizes": [(3, 2)]}
    with pytest.raises(ValueError, match=fault):
        token_similarity_kernel(**{**arguments, "start": 0, **changed})


def test_opcheck_of_merging(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "tokendetr.ops.token_merging.operator.call_kernel",
        lambda operator, *arguments: seen.append((operator, arguments)),
    )
    merge_tokens_kernel(torch.rand(1, 8, 4), torch.tensor([[1, 6, 3]]), **MERGE)
    torch.library.opcheck(*seen[0])


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("score must be float32", {"score_S": torch.rand(3).double()}),
        ("token must have shape", {"token_SX": torch.arange(2)}),
        ("cells must lie", {"cells": [1, 3]}),
        ("counts must lie", {"counts": [4, 0]}),
        ("the classes have 2 windows", {"number": [1, 1]}),
        ("score and token need each other", {"token_SX": None}),
        ("member must lie in", {"token_SX": torch.arange(6).view(3, 2) + 8}),
        ("cosine must have shape", {"cosine_BUU": torch.rand(1, 2, 3)}),
        ("cosine and order need each other", {"order_BU": None}),
        ("order must lie in", {"order_BU": torch.tensor([[0, 1, 3]])}),
        ("valid must be bool", {"valid_BU": torch.tensor([[0, 1, 1]])}),
        ("counts must lie", {"important_counts": [4]}),
        ("neighbors must lie", {"neighbors": 4}),
        ("length must lie", {"length": 9}),
    ],
)
def test_arguments_of_plans_that_do_not_fit_are_refused_by_name(fault, changed):
    with pytest.raises(ValueError, match=fault):
        plan_merge_kernel(VALID, **{"length": 6, **WINDOWS, **LEVEL, **changed})


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("x must be float32", {"x_BNC": torch.rand(1, 8, 4).double()}),
        ("index must lie in", {"index_BK": torch.tensor([[1, 8]])}),
        ("member must lie in", {"member_E": torch.tensor([0, 8])}),
        ("member must have shape", {"sizes": [(2, 2)]}),
        ("window_slot must lie", {"window_slot_R": torch.tensor([3])}),
        ("neighbor must lie", {"neighbor_BUT": torch.tensor([[[1], [2]]])}),
        ("absorbs must have shape", {"absorbs_BUT": torch.tensor([[[True]]])}),
        ("neighbor and absorbs need each other", {"absorbs_BUT": None}),
        ("absorber must lie", {"absorber_A": torch.tensor([2])}),
        ("absorber_slot must lie", {"absorber_slot_A": torch.tensor([-1])}),
        ("start must lie", {"start": 7}),
    ],
)
def test_arguments_of_merging_that_do_not_fit_are_refused_by_name(fault, changed):
    arguments = {"x_BNC": torch.rand(1, 8, 4), "index_BK": torch.tensor([[1, 6, 3]]), **MERGE}
    with pytest.raises(ValueError, match=fault):
        merge_tokens_kernel(**{**arguments, **changed})
