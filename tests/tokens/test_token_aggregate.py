"""Rarity and affinity against float64 loops written from the paper's text."""

import math

import pytest
import torch

from tests.tokens.naive_windows import cosine
from tokendetr.tokens import match_by_affinity


def naive_match(x_NC, important_count, num_neighbors, min_cosine):
    """Return rarity, important set and merges of one image without padding."""
    tokens = len(x_NC)
    table = [[cosine(a, b) for b in x_NC] for a in x_NC]
    rarity = [
        sum(1 / max(table[i][j], min_cosine) for j in range(tokens) if j != i) / max(tokens - 1, 1)
        for i in range(tokens)
    ]
    important = sorted(range(tokens), key=lambda i: (-rarity[i], i))[:important_count]
    hits = {}
    for u in range(tokens):
        if u in important:
            continue
        table[u][u] = math.inf
        nearest = sorted(range(tokens), key=lambda j: (-table[u][j], j))[1 : num_neighbors + 1]
        hits[u] = {v for v in nearest if v in important}
    return rarity, important, hits


@pytest.mark.parametrize("seed", range(8))
def test_matching_equals_algorithm_1(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [12, 5, 2, 1]
    x = torch.randn(4, 12, 7, dtype=torch.float64, generator=generator)
    x[:, 1:] += x[:, :1]
    valid = torch.zeros(4, 12, dtype=torch.bool)
    for image, size in enumerate(sizes):
        valid[image, :size] = True
        x[image, size:] = x[image, 0]  # padding that looks just like a real token
    counts = [max(1, round(size * 0.4)) for size in sizes]
    match = match_by_affinity(
        x,
        important_counts=counts,
        valid_BN=valid,
        valid_counts=sizes,
        num_neighbors=3,
        min_cosine=0.01,
    )
    for image, size in enumerate(sizes):
        rarity, important, hits = naive_match(x[image, :size], counts[image], 3, 0.01)
        assert match.score_BN[image, :size].tolist() == pytest.approx(rarity, rel=1e-9)
        assert match.important_BN[image].nonzero().flatten().tolist() == sorted(important)
        assert match.index_BK[image, : counts[image]].tolist() == important
        for u in range(12):
            found = match.neighbor_index_BNT[image, u][match.absorbs_BNT[image, u]].tolist()
            assert set(found) == hits.get(u, set())


def test_opposite_and_orthogonal_tokens_do_not_flip_or_blow_up_the_ranking():
    base = torch.tensor([1.0, 0.0])
    x = torch.stack(
        [base, base * 1.1, base * 0.9, torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 1.0])]
    )
    match = match_by_affinity(
        x[None],
        important_counts=[2],
        valid_BN=None,
        valid_counts=[5],
        num_neighbors=3,
        min_cosine=0.01,
    )
    assert match.important_BN[0].nonzero().flatten().tolist() == [3, 4]
    assert match.score_BN.max() <= 100


@pytest.mark.parametrize("seed", range(8))
def test_tokens_that_tie_stay_tied_in_any_order_and_among_padding(seed):
    """In each pair of tokens that are similar only to each other, both are equally rare."""
    generator = torch.Generator().manual_seed(seed)
    pairs = 5
    place = torch.randperm(2 * pairs, generator=generator).view(pairs, 2)
    x = torch.zeros(2 * pairs, 2 * pairs)
    for pair, (first, second) in enumerate(place.tolist()):
        angle = 0.2 + 0.2 * pair + 0.05 * torch.rand((), generator=generator)
        x[first, 2 * pair] = 1.0
        x[second, 2 * pair], x[second, 2 * pair + 1] = angle.cos(), angle.sin()
    padded = torch.cat([x, torch.zeros_like(x[:7])])
    real = torch.randperm(len(padded), generator=generator)[: len(x)].sort().values
    valid = torch.zeros(len(padded), dtype=torch.bool)
    valid[real] = True
    padded[real] = x
    options = {"valid_counts": [len(x)], "num_neighbors": 3, "min_cosine": 0.01}
    alone = match_by_affinity(x[None], important_counts=[5], valid_BN=None, **options)
    batched = match_by_affinity(padded[None], important_counts=[5], valid_BN=valid[None], **options)
    for score_N in (alone.score_BN[0], batched.score_BN[0, real]):
        assert torch.equal(score_N[place[:, 0]], score_N[place[:, 1]])
    assert torch.equal(batched.index_BK[0], real[alone.index_BK[0]])


def test_equally_rare_tokens_are_taken_in_the_given_order():
    x = torch.ones(2, 6, 3)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 4] = False
    match = match_by_affinity(
        x,
        important_counts=[3, 2],
        valid_BN=valid,
        valid_counts=[6, 5],
        num_neighbors=1,
        min_cosine=0.01,
        order_BN=torch.tensor([[4, 1, 5, 0, 2, 3]] * 2),
    )
    assert match.index_BK[0].tolist() == [4, 1, 5]
    assert match.index_BK[1, :2].tolist() == [1, 5]
