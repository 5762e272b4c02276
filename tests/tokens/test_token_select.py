"""Selecting and reordering tokens of images with different counts."""

import random

import pytest
import torch

from tests.tokens.naive_selection import naive_topk
from tokendetr.tokens import partition, ragged_index, topk_valid


@pytest.mark.parametrize("seed", range(20))
def test_topk_equals_sorting_by_score_then_position(seed):
    rng = random.Random(seed)
    batch, candidates = rng.randint(1, 4), rng.randint(1, 40)
    scores = [
        [rng.choice([0.0, 1.0, 2.5, -3.0, rng.random()]) for _ in range(candidates)]
        for _ in range(batch)
    ]
    valid = [[rng.random() < 0.7 for _ in range(candidates)] for _ in range(batch)]
    counts = [rng.randint(0, candidates + 5) for _ in range(batch)]
    index, chosen = topk_valid(torch.tensor(scores), counts, valid_BN=torch.tensor(valid))
    for image in range(batch):
        expected = naive_topk(scores[image], valid[image], counts[image])
        own = index[image] if chosen is None else index[image][chosen[image]]
        assert own.tolist() == expected
        assert len(set(index[image].tolist())) == index.shape[1]


def test_nan_and_minus_infinity_come_before_padding():
    score = torch.tensor([[float("-inf"), float("nan"), 5.0, 7.0]])
    valid = torch.tensor([[True, True, False, True]])
    index, chosen = topk_valid(score, [4], valid_BN=valid)
    assert chosen is None
    assert index.tolist() == [[3, 0, 1]]


def test_known_counts_are_believed_and_wrong_counts_refused():
    score, valid = torch.rand(2, 5), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    index, chosen = topk_valid(score, [4, 4], valid_BN=valid, valid_counts=[5, 2])
    assert index.shape == (2, 4) and chosen is not None
    assert chosen.sum(dim=1).tolist() == [4, 2]
    with pytest.raises(ValueError, match="counts"):
        topk_valid(score, [1])
    with pytest.raises(ValueError, match="counts"):
        topk_valid(score, [1, -1])


@pytest.mark.parametrize("seed", range(10))
def test_partition_is_a_stable_permutation(seed):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(3, 17 + seed, generator=generator) < 0.4
    order, slot = partition(keep)
    for image in range(3):
        kept = keep[image].nonzero().flatten().tolist()
        dropped = (~keep[image]).nonzero().flatten().tolist()
        assert order[image].tolist() == kept + dropped
        assert order[image][slot[image]].tolist() == list(range(keep.shape[1]))


def test_a_ragged_index_lists_the_rows_of_each_image():
    assert ragged_index([2, 0, 3], 4, torch.device("cpu")).tolist() == [0, 1, 8, 9, 10]
