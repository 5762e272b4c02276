"""Building W: selection, merging, fusing, clustering, and the laws of all methods."""

from dataclasses import replace

import pytest
import torch

from tests.token_transforming.candidates import random_candidates
from token_transforming import (
    METHODS,
    Candidates,
    Reduction,
    reduce_tokens,
)
from token_transforming.attention import NOT_A_KEY, attend, attend_and_sum, size_bias
from token_transforming.merging import bipartite_clusters
from token_transforming.selection import (
    choose,
    distinct_scores,
    even_scores,
)
from tokendetr.tokens import assignment


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("size", [False, True])
def test_every_method_builds_a_matrix_with_rows_that_sum_to_one(method, padding, size):
    tokens = random_candidates(padding=padding, size=size)
    reduced = reduce_tokens(tokens, Reduction(method=method), recover=True)
    weights = reduced.token_map.weights_BKN()
    rows = weights.sum(dim=2)
    expected = torch.ones_like(rows) if reduced.valid_BK is None else reduced.valid_BK.float()
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(weights @ tokens.x_BNC, reduced.x_BKC, rtol=1e-4, atol=1e-5)
    if padding:
        assert (weights.transpose(1, 2)[~tokens.valid_BN] == 0).all()
    if method != "pruning":
        counted = torch.ones(3, 36) if tokens.size_BN is None else tokens.size_BN
        if padding:
            counted = counted * tokens.valid_BN
        torch.testing.assert_close(reduced.size_BK.sum(dim=1), counted.sum(dim=1))
    anchors = reduced.token_map.anchor_BK
    assert (anchors.diff(dim=1) > 0).all(), "in order of position, distinct"
    restored = reduced.token_map.restore(reduced.x_BKC, tokens.x_BNC)
    assert restored.shape == tokens.x_BNC.shape


@pytest.mark.parametrize("recovery", ["residual", "affine"])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_other_recoveries_than_the_papers_restore_from_the_most_similar_token(
    recovery, blocks, padding, monkeypatch
):
    if blocks:
        monkeypatch.setattr(assignment, "COLUMNS_AT_ONCE", 5)
    tokens = random_candidates(padding=padding)
    tokens = replace(tokens, x_BNC=tokens.x_BNC - 0.2)  # some are below the threshold of all
    how = Reduction(threshold=0.9, recovery=recovery)
    token_map = reduce_tokens(tokens, how, recover=True).token_map
    found = token_map.recovery.index_BNT[..., 0]
    for image, chosen in enumerate(token_map.anchor_BK):
        valid = torch.ones(len(chosen)) if token_map.valid_BK is None else token_map.valid_BK[image]
        used = valid.nonzero().flatten().tolist()
        for token in range(36):
            if padding and not tokens.valid_BN[image, token]:
                continue
            x = tokens.x_BNC[image].double()
            cosines = [cosine(x[chosen[slot]], x[token]) for slot in used]
            assert cosines[used.index(int(found[image, token]))] > max(cosines) - 1e-6
    assert (token_map.assignment.columns(0, 36).amax(dim=1) < 0.5).any(), "none passed the gate"


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("method", METHODS)
def test_a_sequence_does_not_depend_on_its_batch_or_on_what_padding_holds(method):
    tokens = random_candidates(padding=True)
    whole = reduce_tokens(tokens, Reduction(method=method), recover=True)
    for image in range(3):
        pick = slice(image, image + 1)
        alone = Candidates(
            x_BNC=tokens.x_BNC[pick].masked_fill(~tokens.valid_BN[pick][..., None], 77.0),
            received_BN=tokens.received_BN[pick],
            class_BN=tokens.class_BN[pick],
            key_BND=tokens.key_BND[pick].masked_fill(~tokens.valid_BN[pick][..., None], -9.0),
            kept=tokens.kept,
            grid=tokens.grid,
            kept_grid=tokens.kept_grid,
            valid_BN=tokens.valid_BN[pick],
            kept_B=tokens.kept_B[pick],
        )
        single = reduce_tokens(alone, Reduction(method=method), recover=True)
        real = whole.valid_BK[image]
        assert torch.equal(single.valid_BK[0], real)
        torch.testing.assert_close(single.x_BKC[0][real], whole.x_BKC[image][real])
        torch.testing.assert_close(single.size_BK[0][real], whole.size_BK[image][real])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("selection", ["attention", "uniform", "distinct"])
@pytest.mark.parametrize("padding", [False, True])
def test_autocast_changes_nothing(method, selection, padding):
    tokens = random_candidates(padding=padding, size=True)
    how = Reduction(method=method, selection=selection)
    expected = reduce_tokens(tokens, how, recover=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = reduce_tokens(tokens, how, recover=True)
    assert torch.equal(found.token_map.anchor_BK, expected.token_map.anchor_BK)
    torch.testing.assert_close(found.x_BKC, expected.x_BKC)
    torch.testing.assert_close(found.size_BK, expected.size_BK)


def test_pruning_keeps_the_tokens_themselves():
    tokens = random_candidates()
    for selection, score in (
        ("attention", tokens.received_BN),
        ("class_attention", tokens.class_BN),
    ):
        how = Reduction(method="pruning", selection=selection)
        reduced = reduce_tokens(tokens, how, recover=False)
        best = score.topk(16, dim=1).indices.sort(dim=1).values
        assert torch.equal(reduced.token_map.anchor_BK, best)
        assert torch.equal(reduced.x_BKC, tokens.x_BNC.gather(1, best[..., None].expand(-1, -1, 8)))


def test_uniform_selection_takes_evenly_spaced_rows_and_columns():
    reduced = reduce_tokens(
        random_candidates(), Reduction(method="pruning", selection="uniform"), recover=False
    )
    rows, columns = reduced.token_map.anchor_BK[0] // 6, reduced.token_map.anchor_BK[0] % 6
    assert rows.unique().tolist() == columns.unique().tolist() == [0, 2, 3, 5]
    assert even_scores(10, 5, torch.device("cpu")).nonzero().flatten().tolist() == [1, 3, 5, 7, 9]


def naive_bipartite(metric, kept, size):
    """Apply one round of bipartite merging on lists; kept is at least half."""
    tokens = len(metric)
    unit = [m / m.norm() for m in metric.double()]
    pairs = []
    for a in range(0, tokens, 2):
        best = max(range(1, tokens, 2), key=lambda b: float(unit[a] @ unit[b]))
        pairs.append((float(unit[a] @ unit[best]), a, best))
    pairs.sort(key=lambda pair: -pair[0])
    target = {a: b for _, a, b in pairs[: tokens - kept]}
    left = [n for n in range(tokens) if n not in target]
    return [left.index(target.get(n, n)) for n in range(tokens)], left


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tokens", [11, 12])
def test_bipartite_merging_is_the_plain_procedure(seed, tokens):
    metric = torch.randn(2, tokens, 5, generator=torch.Generator().manual_seed(seed))
    cluster, anchor, valid = bipartite_clusters(metric, 8)
    assert valid is None
    for image in range(2):
        expected, left = naive_bipartite(metric[image], 8, None)
        assert cluster[image].tolist() == expected
        assert anchor[image].tolist() == left


def test_merging_below_half_takes_several_rounds():
    metric = torch.randn(2, 40, 6)
    cluster, anchor, _ = bipartite_clusters(metric, 7)
    for image in range(2):
        assert sorted(set(cluster[image].tolist())) == list(range(7))
        assert torch.equal(cluster[image][anchor[image]], torch.arange(7))


@pytest.mark.parametrize("tokens", [1, 7, 16, 21])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
def test_distinct_scores_are_those_of_a_loop(monkeypatch, tokens, at_once):
    monkeypatch.setattr("token_transforming.selection.SIMILARITIES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, 5, generator=generator)
    valid = torch.rand(2, tokens, generator=generator) > 0.3
    found = distinct_scores(x, valid)
    bits = max(1, (tokens - 1).bit_length())
    visited = sorted(range(tokens), key=lambda place: f"{place:0{bits}b}"[::-1])
    for image in range(2):
        for turn, token in enumerate(visited):
            before = [other for other in visited[:turn] if valid[image, other]]
            alike = [torch.cosine_similarity(x[image, token], x[image, o], dim=0) for o in before]
            expected = -max(alike, default=-2.0)
            assert float(found[image, token]) == pytest.approx(float(expected), abs=1e-5)


def test_of_tokens_that_are_alike_one_is_kept():
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(9, 16, generator=generator), dim=1)
    kind = torch.randint(9, (36,), generator=generator)
    kind[torch.randperm(36, generator=generator)[:9]] = torch.arange(9)
    length = torch.rand(36, 1, generator=generator) + 0.5
    tokens = replace(random_candidates(batch=1, kept=(3, 3)), x_BNC=(length * features[kind])[None])
    how = Reduction(selection="distinct", method="pruning")
    index = reduce_tokens(tokens, how, recover=False).token_map.anchor_BK[0]
    assert sorted(kind[index].tolist()) == list(range(9))


def test_fusing_makes_one_token_of_the_least_informative():
    tokens = random_candidates()
    how = Reduction(method="fusing", selection="class_attention")
    weights = reduce_tokens(tokens, how, recover=False).token_map.weights_BKN()
    for image in range(3):
        order = tokens.class_BN[image].argsort(descending=True)
        fused = order[15:]
        row = int((weights[image] > 0).sum(dim=1).argmax())
        assert (weights[image, row] > 0).sum() == 21
        share = tokens.class_BN[image][fused] / tokens.class_BN[image][fused].sum()
        torch.testing.assert_close(weights[image, row][fused], share)
        others = [k for k in range(16) if k != row]
        assert (weights[image, others].max(dim=1).values == 1).all()


def test_clustering_recovers_smooth_features_better_than_one_center_could():
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    x = torch.stack([rows, columns], dim=-1).flatten(0, 1)[None] * 20
    tokens = Candidates(
        x_BNC=x,
        received_BN=torch.ones(1, 144),
        class_BN=None,
        key_BND=x,
        kept=64,
        grid=(12, 12),
        kept_grid=(8, 8),
    )
    reduced = reduce_tokens(
        tokens, Reduction(method="clustering", keep_ratio=64 / 144), recover=True
    )
    restored = reduced.token_map.restore(reduced.x_BKC, x)
    assert (restored - x).norm(dim=-1).mean() < 12


@pytest.mark.parametrize("rows_at_once", [1, 5, 100])
def test_column_sums_are_those_of_the_attention(monkeypatch, rows_at_once):
    monkeypatch.setattr("token_transforming.attention.WEIGHTS_AT_ONCE", 2 * 3 * 9 * rows_at_once)
    query, key, value = torch.randn(3, 2, 3, 9, 4)
    bias = torch.randn(2, 1, 1, 9)
    out, observed = attend_and_sum(query, key, value, scale=0.5, bias=bias)
    weights = (query.double() @ key.double().transpose(2, 3) * 0.5 + bias).softmax(dim=-1)
    torch.testing.assert_close(observed.received_BN, weights.mean(dim=1).sum(dim=1).float())
    torch.testing.assert_close(observed.class_BN, weights.mean(dim=1)[:, 0].float())
    torch.testing.assert_close(out, (weights @ value.double()).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        out, attend(query, key, value, scale=0.5, bias=bias), rtol=1e-4, atol=1e-5
    )


def test_padding_queries_do_not_count_in_column_sums():
    query, key, value = torch.randn(3, 1, 2, 6, 4)
    valid = torch.tensor([[True, True, True, True, False, False]])
    _, observed = attend_and_sum(query, key, value, scale=1.0, valid_BN=valid)
    weights = (query @ key.transpose(2, 3)).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(observed.received_BN, weights[:, :4].sum(dim=1))


def test_a_token_of_size_three_weighs_like_three_tokens():
    query, key, value = torch.randn(3, 1, 1, 5, 4)
    copies = torch.tensor([0, 1, 1, 1, 2, 3, 4])
    bias = size_bias(torch.tensor([[1.0, 3.0, 1.0, 1.0, 1.0]]), None)
    torch.testing.assert_close(
        attend(query, key, value, scale=1.0, bias=bias),
        attend(query, key[:, :, copies], value[:, :, copies], scale=1.0),
    )
    valid = torch.tensor([[True, False]])
    assert size_bias(None, valid, first=1).tolist() == [[[[0.0, 0.0, NOT_A_KEY]]]]
    assert size_bias(None, None) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_attention_and_reduction_are_finite(dtype):
    query, key, value = (torch.randn(3, 1, 2, 8, 4) * 30).to(dtype)
    out, observed = attend_and_sum(query, key, value, scale=1.0)
    assert out.dtype == dtype and out.isfinite().all()
    torch.testing.assert_close(observed.received_BN.sum(), torch.tensor(8.0), rtol=1e-3, atol=0)


def test_equal_scores_are_taken_in_order_and_padding_never():
    index, valid = choose(torch.zeros(2, 6), 3)
    assert index.tolist() == [[0, 1, 2]] * 2 and valid is None
    real = torch.tensor([[True, False, True, True, False, True]])
    index, valid = choose(torch.tensor([[0.1, 9.0, 0.2, 0.3, 9.0, float("nan")]]), 3, real)
    assert index.tolist() == [[0, 2, 3]] and valid.all()
    index, valid = choose(torch.arange(6.0)[None], 4, real, torch.tensor([2]))
    assert index[valid].tolist() == [3, 5] and (~valid).sum() == 2
