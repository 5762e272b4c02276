"""Settings of reductions: similarities, pooled queries, schedules, and refused values."""

import pytest
import torch
from torch.nn import functional as F

from tests.token_transforming.candidates import random_candidates
from token_transforming import (
    Candidates,
    Reduction,
    merging_schedule,
    reduce_tokens,
)
from token_transforming.selection import (
    pooled_queries,
)
from tokendetr.tokens import assign_by_similarity


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep_ratio": 0}, "keep_ratio"),
        ({"keep_ratio": 1.1}, "keep_ratio"),
        ({"keep_ratio": {3: 0.7}}, "keep_ratio must lie in"),
        ({"threshold": 2}, "threshold"),
        ({"temperature": 0}, "temperature"),
        ({"method": "squeezing"}, "squeezing"),
        ({"selection": "first"}, "first"),
        ({"sizes": "big"}, "sizes"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Reduction(**wrong)


def test_counts_of_kept_tokens():
    assert Reduction(keep_ratio=0.7).kept(196) == 138
    assert Reduction(keep_ratio=0.6).kept(196) == 118
    assert Reduction(keep_ratio=0.7).kept(10) == 7
    assert Reduction(keep_ratio=0.1).kept(3) == 1
    assert Reduction(keep_ratio=64 / 144).kept_grid(12, 12) == (8, 8)
    assert Reduction(keep_ratio=1.0).kept_grid(7, 7) == (7, 7)
    assert Reduction(keep_ratio=0.5).kept_grid(8, 8) in ((5, 6), (6, 5))


def test_missing_inputs_of_a_method_are_named():
    tokens = random_candidates()
    sequence = Candidates(
        x_BNC=tokens.x_BNC,
        received_BN=tokens.received_BN,
        class_BN=None,
        key_BND=tokens.key_BND,
        kept=5,
    )
    with pytest.raises(ValueError, match="grid"):
        reduce_tokens(sequence, Reduction(method="clustering"), recover=False)
    with pytest.raises(ValueError, match="class token"):
        reduce_tokens(sequence, Reduction(selection="class_attention"), recover=False)


def test_pooled_queries_are_adaptive_means():
    x_BNC = torch.randn(2, 35, 6)
    mean_BKC, middle_BK, valid_BK = pooled_queries(x_BNC, (5, 7), (2, 3), 6)
    expected = F.adaptive_avg_pool2d(x_BNC.transpose(1, 2).unflatten(2, (5, 7)), (2, 3))
    torch.testing.assert_close(mean_BKC, expected.flatten(2).transpose(1, 2))
    assert valid_BK is None
    assert middle_BK[0].tolist() == [8, 10, 12, 22, 24, 26]
    of_line, _, _ = pooled_queries(x_BNC, None, None, 4)
    torch.testing.assert_close(
        of_line, F.adaptive_avg_pool1d(x_BNC.transpose(1, 2), 4).transpose(1, 2)
    )
    valid_BN = torch.ones(2, 5, 7, dtype=torch.bool)
    valid_BN[0, :, 2:] = False
    mean_BKC, _, valid_BK = pooled_queries(x_BNC, (5, 7), (2, 3), 6, valid_BN.flatten(1))
    assert valid_BK[0].tolist() == [True, False, False] * 2
    corner = x_BNC[0].unflatten(0, (5, 7))[:3, :2].flatten(0, 1).mean(dim=0)
    torch.testing.assert_close(mean_BKC[0, 0], corner)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("selection", ["attention", "pooled"])
@pytest.mark.parametrize("padding", [False, True])
def test_similarity_and_normalization_follow_formulas(similarity, normalize, selection, padding):
    tokens = random_candidates(padding=padding)
    how = Reduction(
        threshold=0.3,
        temperature=3.0,
        similarity=similarity,
        normalize=normalize,
        selection=selection,
    )
    reduced = reduce_tokens(tokens, how, recover=True)
    x = tokens.x_BNC.double()
    if selection == "pooled":
        query = pooled_queries(x, tokens.grid, tokens.kept_grid, 16, tokens.valid_BN)[0].double()
    else:
        index = reduced.token_map.anchor_BK
        query = torch.stack([x[image, index[image]] for image in range(3)])
    for image in range(3):
        real = torch.ones(36, dtype=torch.bool) if not padding else tokens.valid_BN[image]
        used = torch.ones(16, dtype=torch.bool) if not padding else reduced.valid_BK[image]
        mine, others = query[image, used], x[image, real]
        if similarity == "cosine":
            alike = F.cosine_similarity(mine[:, None], others[None], dim=-1)
        else:
            square = others.square().sum(dim=1).mean()
            alike = 1 - (mine[:, None] - others[None]).square().sum(dim=-1) / (2 * square)
        share = torch.where(alike >= 0.3, alike, 0.0)
        if normalize:
            share = (3.0 * share).softmax(dim=0)
        expected = (share @ others) / share.sum(dim=1, keepdim=True).clamp_min(1e-30)
        torch.testing.assert_close(
            reduced.x_BKC[image, used].double(), expected, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            reduced.size_BK[image, used].double(), share.sum(dim=1), rtol=1e-4, atol=1e-5
        )


def test_a_euclidean_similarity_of_equal_lengths_is_the_cosine():
    x_BNC = F.normalize(torch.randn(2, 20, 5), dim=-1) * 3
    index_BK = torch.arange(6).expand(2, -1)
    shares = [
        assign_by_similarity(
            x_BNC, index_BK, threshold=0.2, temperature=9.0, similarity=similarity
        ).columns(0, 20)
        for similarity in ("cosine", "euclidean")
    ]
    torch.testing.assert_close(*shares, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "pooled", "method": "pruning"}, "use it with method='transforming'"),
        ({"normalize": False, "threshold": -1.0}, "needs a threshold of at least 0"),
        ({"similarity": "dot"}, "similarity must be one of 'cosine', 'euclidean'"),
        ({"removed": -1}, "removed must be at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Reduction(**options)


def test_a_schedule_removes_as_many_as_it_says():
    assert merging_schedule(8, 4) == (8, 8, 8, 8)
    assert merging_schedule(8, 5, -1.0) == (16, 12, 8, 4, 0)
    assert merging_schedule(8, 5, 1.0) == (0, 4, 8, 12, 16)
    with pytest.raises(ValueError, match="inflection"):
        merging_schedule(8, 5, 2.0)
    assert Reduction(method="merging", removed=16).kept(100) == 84
    assert Reduction(method="merging", removed=60).kept(100) == 50
