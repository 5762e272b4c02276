"""Samplers: streams shared by ranks, subsets, repeat factors."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

from tests.standalone.detectron2.ranks import as_rank, take


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_sampler_ranks_share_one_stream(monkeypatch, world_size):
    shares = []
    for rank in range(world_size):
        as_rank(monkeypatch, rank, world_size)
        shares.append(take(TrainingSampler(10, seed=7), 30))
    stream = [shares[i % world_size][i // world_size] for i in range(30)]
    as_rank(monkeypatch, 0, 1)
    assert stream == take(TrainingSampler(10, seed=7), 30)
    # Each pass holds every item once; passes differ.
    assert all(sorted(stream[i : i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert stream[:10] != stream[10:20]


def test_training_sampler_arguments():
    assert take(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]
    assert take(TrainingSampler(50, seed=1), 50) != take(TrainingSampler(50, seed=2), 50)
    with pytest.raises(ValueError, match="positive"):
        TrainingSampler(0)
    with pytest.raises(TypeError):
        TrainingSampler(2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "world_size"), [(10, 1), (10, 3), (2, 4), (7, 7)])
def test_inference_sampler_covers_everything_once_in_order(monkeypatch, size, world_size):
    shards = []
    for rank in range(world_size):
        as_rank(monkeypatch, rank, world_size)
        sampler = InferenceSampler(size)
        shards.append(list(sampler))
        assert len(sampler) == len(shards[-1])
    assert list(itertools.chain(*shards)) == list(range(size))
    sizes = [len(s) for s in shards]
    assert max(sizes) - min(sizes) <= 1


def test_subset_sampler_keeps_to_its_part():
    sampler = RandomSubsetTrainingSampler(100, 0.2, seed_shuffle=1, seed_subset=2)
    seen = take(sampler, 60)
    assert len(set(seen)) == 20
    assert all(len(set(seen[i : i + 20])) == 20 for i in (0, 20, 40))
    same = RandomSubsetTrainingSampler(100, 0.2, seed_shuffle=9, seed_subset=2)
    assert set(take(same, 20)) == set(seen)


def test_repeat_factors_of_rare_categories():
    records = [{"annotations": [{"category_id": 0}]} for _ in range(99)]
    records.append({"annotations": [{"category_id": 0}, {"category_id": 1}]})
    records.append({"annotations": []})
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.09)
    assert factors[0] == 1 and factors[-1] == 1
    assert factors[99] == pytest.approx((0.09 * 101) ** 0.5)
    linear = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, 0.09, sqrt=False
    )
    assert linear[99] == pytest.approx(0.09 * 101)


def test_repeat_factor_sampler_repeats_on_average():
    factors = torch.tensor([1.0, 2.5, 1.0, 3.0]).repeat(100)
    stream = take(RepeatFactorTrainingSampler(factors, seed=3), 15_000)
    # 20 passes of 750 on average; items of one factor are counted together.
    counts = np.bincount(np.asarray(stream) % 4, minlength=4) / 2_000
    np.testing.assert_allclose(counts, factors[:4].numpy(), rtol=0.03)
