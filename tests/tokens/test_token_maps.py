"""The laws of token maps, on random maps."""

import pytest
import torch

from tokendetr.tokens import (
    AffinityGroup,
    Identity,
    Keep,
    LevelLayout,
    LevelWindows,
    Merge,
    WindowGroup,
    partition,
    topk_valid,
    valid_from_counts,
)
from tokendetr.tokens.aggregate import absorbed_matrix

HEIGHT, WIDTH, LAST = 6, 8, 5
TOKENS = HEIGHT * WIDTH + LAST


def random_keep(seed: int, batch: int = 3, tokens: int = 20) -> Keep:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, tokens, (batch,), generator=generator).tolist()
    index, valid = topk_valid(torch.rand(batch, tokens, generator=generator), counts)
    return Keep(index_BK=index, valid_BK=valid)


def random_merge(
    seed: int, *, rule="mean", broadcast=False, locate="anchor", affinity=True
) -> Merge:
    """Draw two images; a 6 x 8 level with 2 x 2 windows, some merging, and a matched level."""
    generator = torch.Generator().manual_seed(seed)
    layout = LevelLayout.from_valid_sizes([(HEIGHT, WIDTH)], [[(HEIGHT, WIDTH)]])
    members = LevelWindows.of(layout, 0, 2).token_A.view(-1, 4)
    keep = torch.ones(2, TOKENS, dtype=torch.bool)
    picked = []
    for image, merged in enumerate((5, 2)):
        chosen = torch.randperm(len(members), generator=generator)[:merged]
        rows = members[chosen] + image * TOKENS
        keep.view(-1)[rows[:, :-1].flatten()] = False
        picked.append(rows)
    member_RP = torch.cat(picked)
    important = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 1, 1, 0]]).bool()
    match = torch.tensor(
        [[[1, 2], [0, 2], [0, 4], [4, 2], [0, 1]], [[1, 2], [0, 2], [0, 1], [1, 2], [0, 3]]]
    )
    hit = important.gather(1, match.flatten(1)).view_as(match) & ~important[..., None]
    keep[:, -LAST:] = important
    order, slot = partition(keep)
    counts = keep.sum(dim=1).tolist()
    length = max(counts)

    def flat_slots(token_R):
        return slot.flatten()[token_R] + token_R // TOKENS * length

    receivers = important.flatten().nonzero().flatten()
    all_receivers = receivers // LAST * TOKENS + TOKENS - LAST + receivers % LAST
    groups = [
        WindowGroup(
            slot_R=flat_slots(member_RP[:, -1]), member_RP=member_RP, rule=rule, locate=locate
        )
    ]
    if affinity:
        groups.append(
            AffinityGroup(
                slot_R=flat_slots(all_receivers),
                token_R=receivers,
                neighbor_index_BUT=match,
                absorbs_BUT=hit,
                absorbed_BUV=absorbed_matrix(match, hit),
                start=TOKENS - LAST,
                rule=rule,
            )
        )
    return Merge(
        index_BK=order[:, :length],
        valid_BK=valid_from_counts(counts, length, order.device),
        groups=groups,
        num_all=TOKENS,
        broadcast=broadcast,
    )


def test_identity_changes_nothing():
    x = torch.randn(2, 9, 4)
    identity = Identity(num_tokens=9)
    assert identity.reduce(x) is x
    assert identity.restore(x, torch.zeros_like(x)) is x
    assert identity.select(x) is x
    assert identity.num_tokens == 9


@pytest.mark.parametrize("seed", range(10))
def test_keep_gathers_its_rows_and_restoring_them_is_exact(seed):
    token_map = random_keep(seed)
    x = torch.randn(3, 20, 5)
    reduced = token_map.reduce(x)
    for image in range(3):
        assert torch.equal(reduced[image], x[image][token_map.anchor_BK[image]])
    assert torch.equal(token_map.restore(reduced, x), x)


@pytest.mark.parametrize("seed", range(10))
def test_keep_replaces_its_own_rows_and_no_other(seed):
    token_map = random_keep(seed)
    x, y = torch.randn(3, 20, 5), torch.randn(3, token_map.num_tokens, 5)
    restored = token_map.restore(y, x)
    for image in range(3):
        valid = torch.ones(token_map.num_tokens).bool()
        if token_map.valid_BK is not None:
            valid = token_map.valid_BK[image]
        expected = x[image].clone()
        expected[token_map.anchor_BK[image][valid]] = y[image][valid]
        assert torch.equal(restored[image], expected)


@pytest.mark.parametrize("seed", range(3))
def test_keep_may_restore_over_the_memory(seed):
    token_map = random_keep(seed)
    x, y = torch.randn(3, 20, 5), torch.randn(3, token_map.num_tokens, 5)
    expected = token_map.restore(y, x)
    assert torch.equal(token_map.restore_onto(y, x.bfloat16()), token_map.restore(y, x.bfloat16()))
    restored = token_map.restore_onto(y, x)
    assert torch.equal(restored, expected)
    assert restored.data_ptr() == x.data_ptr(), "no copy"


def test_gradients_pass_through_keep_to_kept_and_passed_rows():
    token_map = random_keep(1)
    x = torch.randn(3, 20, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: token_map.restore(token_map.reduce(x).square(), x), (x,)
    )


def test_keep_refuses_wrong_indices():
    with pytest.raises(ValueError, match="index_BK"):
        Keep(index_BK=torch.rand(2, 3))
    with pytest.raises(ValueError, match="valid_BK"):
        Keep(index_BK=torch.zeros(2, 3).long(), valid_BK=torch.ones(2, 4).bool())


def test_low_precision_memory_does_not_round_results():
    token_map = random_keep(2)
    x, y = torch.randn(3, 20, 5).bfloat16(), torch.randn(3, token_map.num_tokens, 5)
    restored = token_map.restore(y, x)
    assert restored.dtype == torch.float32
    assert torch.equal(restored[0][token_map.anchor_BK[0][0]], y[0, 0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rule", ["mean", "sum", "retain"])
def test_merge_is_its_weight_matrix(seed, rule):
    token_map = random_merge(seed, rule=rule)
    x = torch.randn(2, TOKENS, 4)
    weights = token_map.weights_BKN()
    valid = (
        torch.ones(2, token_map.num_tokens).bool()
        if token_map.valid_BK is None
        else token_map.valid_BK
    )
    torch.testing.assert_close(token_map.reduce(x)[valid], (weights @ x)[valid])
    if rule != "sum":
        torch.testing.assert_close(weights.sum(dim=2), valid.float())
    assert torch.equal(weights[~valid], torch.zeros_like(weights[~valid]))


@pytest.mark.parametrize("seed", range(6))
def test_window_merging_conserves_the_size_weighted_sum(seed):
    token_map = random_merge(seed, affinity=False)
    x = torch.randn(2, TOKENS, 4, dtype=torch.float64)
    size = token_map.size_BK().double()
    windows = (size[..., None] * token_map.reduce(x)).sum(dim=1)
    kept = token_map.weights_BKN().sum(dim=1) > 0
    expected = (x * kept[..., None]).sum(dim=1)
    torch.testing.assert_close(windows, expected)
    assert size.sum(dim=1).tolist() == kept.sum(dim=1).tolist()


def test_affinity_merging_conserves_each_token_as_often_as_it_is_taken_in():
    token_map = random_merge(0)
    x = torch.randn(2, TOKENS, 4)
    size, weights = token_map.size_BK(), token_map.weights_BKN()
    times = ((weights > 0) & (size[..., None] > 0)).sum(dim=1)
    total = (size[..., None] * token_map.reduce(x)).sum(dim=1)
    torch.testing.assert_close(total, (times[..., None] * x).sum(dim=1))


def test_maximum_and_retain():
    x = torch.randn(2, TOKENS, 4)
    weights = random_merge(3).weights_BKN() > 0
    largest, retained = random_merge(3, rule="max"), random_merge(3, rule="retain")
    for image in range(2):
        valid = weights[image].any(dim=1)
        for slot in valid.nonzero().flatten().tolist():
            members = weights[image, slot]
            torch.testing.assert_close(
                largest.reduce(x)[image, slot], x[image][members].amax(dim=0)
            )
            anchor = retained.anchor_BK[image, slot]
            assert torch.equal(retained.reduce(x)[image, slot], x[image, anchor])


@pytest.mark.parametrize("broadcast", [False, True])
def test_restoring_a_merge(broadcast):
    token_map = random_merge(4, broadcast=broadcast)
    x, y = torch.randn(2, TOKENS, 4), torch.randn(2, token_map.num_tokens, 4)
    restored = token_map.restore(y, x)
    cluster = token_map.cluster_BN()
    anchors = token_map.anchor_BK
    for image in range(2):
        for token in range(TOKENS):
            slot = int(cluster[image, token])
            own = slot >= 0 and (broadcast or int(anchors[image, slot]) == token)
            expected = y[image, slot] if own else x[image, token]
            assert torch.equal(restored[image, token], expected)
    assert torch.equal(token_map.restore_onto(y, x.clone()), restored)


def test_clusters_name_the_token_that_stands_for_each():
    token_map = random_merge(5, affinity=False)
    cluster, weights = token_map.cluster_BN(), token_map.weights_BKN()
    for image in range(2):
        for token in range(TOKENS):
            rows = weights[image, :, token].nonzero().flatten().tolist()
            assert rows == ([] if cluster[image, token] < 0 else [int(cluster[image, token])])


def test_attributes_come_from_anchors_or_window_means():
    x = torch.randn(2, TOKENS, 3, 2)
    anchored, centered = random_merge(6), random_merge(6, locate="mean", affinity=False)
    expected = torch.stack([x[i][anchored.anchor_BK[i]] for i in range(2)])
    assert torch.equal(anchored.select(x), expected)
    weights = centered.weights_BKN()
    valid = weights.sum(dim=2) > 0
    mean = torch.einsum("bkn,bnlx->bklx", weights, x)
    torch.testing.assert_close(centered.select(x)[valid], mean[valid])


@pytest.mark.parametrize("rule", ["mean", "sum", "max", "retain"])
@pytest.mark.parametrize("broadcast", [False, True])
def test_gradients_pass_through_merge(rule, broadcast):
    token_map = random_merge(7, rule=rule, broadcast=broadcast)
    x = torch.randn(2, TOKENS, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: token_map.restore(token_map.reduce(x).square(), x), (x,)
    )
