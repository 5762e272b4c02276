"""Many-to-many maps: against a plain float64 loop over the paper's equations, and their laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokens.random_mixes import random_mix
from tokendetr.tokens import (
    ClusterAssignment,
    DenseAssignment,
    Mix,
    Recovery,
    SimilarityAssignment,
    assign_by_similarity,
    assignment,
    nearest_recovery,
)


def naive_transform(x, chosen, threshold, temperature, size, valid):
    """Apply equations 3 to 8 to one image, entry by entry; also equation 9's indices."""
    x, tokens = x.double(), range(len(x))
    share = torch.zeros(len(chosen), len(x), dtype=torch.float64)
    for j in tokens:
        if not valid[j]:
            continue
        logits = []
        for i in chosen:
            norm = float(x[i].norm() * x[j].norm())
            cosine = float(x[i] @ x[j]) / norm if norm > 0 else 0.0
            logits.append(temperature * (cosine if cosine >= threshold else 0.0))
        top = max(logits)
        weights = [math.exp(logit - top) for logit in logits]
        for row, weight in enumerate(weights):
            share[row, j] = weight / sum(weights)
    sizes = torch.stack([sum(share[i, j] * size[j] for j in tokens) for i in range(len(chosen))])
    mixed = torch.stack(
        [sum(share[i, j] * size[j] * x[j] for j in tokens) / sizes[i] for i in range(len(chosen))]
    )
    nearest = [
        min(range(len(chosen)), key=lambda i: float((x[j] - mixed[i]).norm())) for j in tokens
    ]
    return share, sizes, mixed, nearest


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("padding", [0, 4])
def test_the_map_is_the_papers_equations(seed, padding):
    x, size, valid, index, mix = random_mix(seed, padding=padding)
    mixed, sizes = mix.mix(x)
    restored = mix.with_recovery(x, mixed).restore(mixed, x)
    for image in range(2):
        share, size_K, mixed_KC, nearest = naive_transform(
            x[image], index[image].tolist(), 0.3, 20.0, size[image].double(), valid[image]
        )
        torch.testing.assert_close(
            mix.assignment.columns(0, 17)[image].double(), share, rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(sizes[image].double(), size_K, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mixed[image].double(), mixed_KC, rtol=1e-4, atol=1e-5)
        real = valid[image]
        expected = mixed[image][torch.tensor(nearest)]
        torch.testing.assert_close(restored[image][real], expected[real])


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 300.0))
@settings(max_examples=40, deadline=None)
def test_rows_of_w_sum_to_one_and_sizes_to_the_number_of_tokens(seed, temperature):
    x, size, _, _, mix = random_mix(seed, temperature=temperature, padding=seed % 4)
    torch.testing.assert_close(mix.weights_BKN().sum(dim=2), torch.ones(2, 6))
    torch.testing.assert_close(mix.size_BK().sum(dim=1), size.sum(dim=1))
    torch.testing.assert_close(mix.reduce(x), mix.weights_BKN() @ x, rtol=1e-4, atol=1e-5)
    assert mix.size_BK().min() > 0


@pytest.mark.parametrize("tokens", [5, 40])
def test_keeping_all_tokens_sharply_is_the_identity(tokens):
    x = torch.randn(2, tokens, 24)
    index = torch.arange(tokens).expand(2, -1)
    share = assign_by_similarity(x, index, threshold=0.5, temperature=1e4)
    mix = Mix(assignment=share, index_BK=index)
    mixed, size = mix.mix(x)
    torch.testing.assert_close(mixed, x)
    torch.testing.assert_close(size, torch.ones(2, tokens))
    torch.testing.assert_close(mix.with_recovery(x, mixed).restore(mixed, x), x)


@pytest.mark.parametrize("seed", range(4))
def test_a_hard_assignment_is_merging_with_size_weighted_means(seed):
    x, size, _, index, mix = random_mix(seed, temperature=1e6, threshold=-1.0)
    cluster = mix.assignment.columns(0, 17).argmax(dim=1)
    mixed, sizes = mix.mix(x)
    hard = Mix(assignment=ClusterAssignment(cluster, 6), index_BK=index, size_BN=size)
    torch.testing.assert_close(hard.mix(x)[0], mixed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hard.mix(x)[1], sizes, rtol=1e-4, atol=1e-5)
    for image in range(2):
        for row in range(6):
            members = cluster[image] == row
            total = size[image][members].sum()
            mean = (x[image][members] * size[image][members][:, None]).sum(dim=0) / total
            torch.testing.assert_close(mixed[image, row], mean, rtol=1e-4, atol=1e-5)


def test_a_token_similar_to_none_is_shared_out_evenly():
    x = torch.eye(4)[None]
    mix = assign_by_similarity(x, torch.tensor([[0, 1]]), threshold=0.5, temperature=150.0)
    torch.testing.assert_close(
        mix.columns(0, 4)[0], torch.tensor([[1.0, 0.0, 0.5, 0.5], [0.0, 1.0, 0.5, 0.5]])
    )


def test_padding_reaches_nothing():
    x, size, valid, index, mix = random_mix(3, padding=5)
    changed = x.clone()
    changed[0, -5:] = 1e4
    again = Mix(
        assignment=assign_by_similarity(
            changed, index, threshold=0.3, temperature=20.0, valid_BN=valid
        ),
        index_BK=index,
        size_BN=size,
    )
    torch.testing.assert_close(again.reduce(changed), mix.reduce(x), rtol=0, atol=0)
    assert (mix.weights_BKN()[0, :, -5:] == 0).all()


def test_unused_rows_stand_for_nothing_and_restore_nothing():
    x = torch.randn(1, 6, 4)
    index, used = torch.tensor([[1, 3, 0]]), torch.tensor([[True, True, False]])
    share = assign_by_similarity(x, index, threshold=0.0, temperature=5.0, valid_BK=used)
    mix = Mix(assignment=share, index_BK=index, valid_BK=used)
    mixed, size = mix.mix(x)
    assert size[0, 2] == 0 and (mixed[0, 2] == 0).all()
    torch.testing.assert_close(size.sum(), torch.tensor(6.0))
    assert mix.with_recovery(x, mixed).recovery.index_BNT.max() < 2


def test_an_image_does_not_depend_on_its_batch():
    x, size, valid, index, mix = random_mix(5, batch=3)
    alone = Mix(
        assignment=assign_by_similarity(x[1:2], index[1:2], threshold=0.3, temperature=20.0),
        index_BK=index[1:2],
        size_BN=size[1:2],
    )
    torch.testing.assert_close(alone.reduce(x[1:2]), mix.reduce(x)[1:2])


def test_blocks_give_what_the_whole_matrix_gives(monkeypatch):
    x, size, valid, index, whole = random_mix(1, padding=3)
    monkeypatch.setattr(assignment, "COLUMNS_AT_ONCE", 4)
    blocked = Mix(
        assignment=assign_by_similarity(x, index, threshold=0.3, temperature=20.0, valid_BN=valid),
        index_BK=index,
        size_BN=size,
    )
    assert isinstance(whole.assignment, DenseAssignment)
    assert isinstance(blocked.assignment, SimilarityAssignment)
    for ours, theirs in zip(blocked.mix(x), whole.mix(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(blocked.size_BK(), whole.size_BK())


def test_no_matrix_of_all_tokens_is_made_where_there_are_many():
    x = torch.randn(1, 5000, 8)
    share = assign_by_similarity(
        x, torch.arange(0, 5000, 2)[None], threshold=0.5, temperature=150.0
    )
    assert isinstance(share, SimilarityAssignment)
    assert max(span.stop - span.start for span in share.blocks()) <= 1024
    assert share.gather(x)[1].sum().item() == pytest.approx(5000, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_and_large_temperatures_stay_finite(dtype):
    x = (torch.randn(2, 12, 6) * 60).to(dtype)
    x[0, 3], x[1, 4] = 0.0, x[1, 5]
    mix = Mix(
        assignment=assign_by_similarity(
            x, torch.arange(0, 12, 3).expand(2, -1), threshold=0.5, temperature=1000.0
        ),
        index_BK=torch.arange(0, 12, 3).expand(2, -1),
    )
    mixed, size = mix.mix(x)
    assert mixed.dtype == dtype and mixed.isfinite().all()
    assert size.dtype == torch.float32 and (size > 0).all()
    torch.testing.assert_close(size.sum(dim=1), torch.full((2,), 12.0))


def test_recoveries_compose():
    x = torch.randn(2, 20, 4)
    first = nearest_recovery(x, x[:, ::2] + 0.1)
    second = nearest_recovery(x[:, ::2], x[:, ::4])
    y = torch.randn(2, 5, 4)
    torch.testing.assert_close(
        first.then(second).restore(y), first.restore(second.restore(y)), rtol=0, atol=0
    )
    weighted = Recovery(torch.zeros(2, 20, 3).long(), torch.ones(2, 20, 3) / 3)
    torch.testing.assert_close(weighted.restore(y), y[:, :1].expand(-1, 20, -1))
    with pytest.raises(ValueError, match="composed"):
        first.then(weighted)


def test_gradients_flow_through_similarity_and_mixing():
    x = torch.randn(1, 7, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 2, 5]])

    def mixed(x):
        # The assignment works in float32; the check is therefore against finite differences of it.
        mix = Mix(
            assignment=assign_by_similarity(x, index, threshold=-1.0, temperature=2.0),
            index_BK=index,
        )
        return mix.reduce(x)

    torch.autograd.gradcheck(mixed, (x,), eps=1e-2, atol=2e-2, rtol=2e-2)
    share = assign_by_similarity(x, index, threshold=-1.0, temperature=2.0)
    (gradient,) = torch.autograd.grad(share.gather(x.detach())[1].square().sum(), x)
    assert gradient.abs().sum() > 0, "sizes depend on similarities"


def test_wrong_use_is_refused():
    x = torch.randn(1, 4, 2)
    mix = Mix(
        assignment=ClusterAssignment(torch.zeros(1, 4).long(), 1),
        index_BK=torch.zeros(1, 1).long(),
    )
    with pytest.raises(ValueError, match="with_recovery"):
        mix.restore(mix.reduce(x), x)
    with pytest.raises(ValueError, match="ClusterAssignment does not know"):
        mix.assignment.closest_BN()
    with pytest.raises(ValueError, match="2 tokens"):
        Mix(assignment=mix.assignment, index_BK=torch.zeros(1, 2).long())
