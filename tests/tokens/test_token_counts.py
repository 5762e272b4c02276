"""Counts of a program that is being exported are those that Python integers give."""

import pytest
import torch

from tokendetr.errors import ExportError
from tokendetr.tokens import (
    LevelLayout,
    TracedCounts,
    longest_count,
    map_counts,
    topk_valid,
    valid_from_counts,
)

SHAPES = ((4, 6), (2, 3))
SIZES = [[(4, 6), (2, 3)], [(3, 2), (2, 1)], [(1, 1), (1, 1)]]


def third(count: int) -> int:
    return min(int(0.3 * count) + 1, count)


def layouts() -> tuple[LevelLayout, LevelLayout]:
    known = LevelLayout.from_valid_sizes(SHAPES, SIZES)
    return known, LevelLayout.from_traced_sizes(SHAPES, torch.tensor(SIZES))


def test_both_layouts_describe_the_same_images():
    known, traced = layouts()
    assert torch.equal(known.valid_BN, traced.valid_BN)
    torch.testing.assert_close(known.valid_ratios_BL2, traced.valid_ratios_BL2)
    assert list(known.token_counts) == traced.token_counts.count_B.tolist()
    for level, shape in enumerate(SHAPES):
        counts = traced.level_counts(level)
        assert list(known.level_counts(level)) == counts.count_B.tolist()
        assert counts.longest == shape[0] * shape[1]


def test_a_rule_gives_the_same_counts_and_their_upper_bound():
    known, traced = layouts()
    expected, found = (map_counts(each.token_counts, third) for each in (known, traced))
    assert isinstance(found, TracedCounts) and found.count_B.tolist() == list(expected)
    assert longest_count(found) == third(known.num_tokens) >= longest_count(expected)


def test_the_same_tokens_are_chosen():
    known, traced = layouts()
    score_BN = torch.rand(3, known.num_tokens, generator=torch.Generator().manual_seed(0))
    chosen = []
    for layout in (known, traced):
        counts = map_counts(layout.token_counts, third)
        index_BK, valid_BK = topk_valid(
            score_BN, counts, valid_BN=layout.valid_BN, valid_counts=layout.token_counts
        )
        chosen.append([i[v].tolist() for i, v in zip(index_BK, valid_BK, strict=True)])
    assert chosen[0] == chosen[1]


def test_validity_follows_the_counts():
    counts = TracedCounts(torch.tensor([0, 2, 3]), 3)
    valid_BK = valid_from_counts(counts, 3, torch.device("cpu"))
    assert valid_BK.sum(dim=1).tolist() == [0, 2, 3] and valid_BK[1].tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["valid_counts", "valid_sizes"])
def test_numbers_that_only_the_program_will_know_cannot_be_asked_for(name):
    with pytest.raises(ExportError, match="--no-padding"):
        getattr(layouts()[1], name)
