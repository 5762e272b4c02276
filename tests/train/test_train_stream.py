"""The stream of batches: one fixed sequence, independent of its readers and starting point."""

import itertools
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_train_loader
from detectron2.data.detection_utils import read_image
from detectron2.data.samplers import RepeatFactorTrainingSampler
from omegaconf import OmegaConf

from tokendetr.data.stream import StreamLoader, build_train_loader
from tokendetr.errors import SampleError


def records(count=7):
    return [
        {"file_name": f"{i}.png", "image_id": i, "width": 10 + 10 * (i % 2), "height": 15}
        for i in range(count)
    ]


class Noise:
    """A mapper that draws from every generator, as augmentations do."""

    def __call__(self, record):
        flip = T.RandomFlip().get_transform(np.zeros((4, 4, 3)))
        drawn = (np.random.rand(), torch.rand(1).item(), type(flip).__name__)
        return {**record, "drawn": drawn}


def loader(**overrides):
    node = L(build_detection_train_loader)(
        dataset=L(records)(), mapper=L(Noise)(), total_batch_size=2, num_workers=0
    )
    seed = overrides.pop("seed", 5)
    micro_batches = overrides.pop("micro_batches", 1)
    node.update(overrides)
    return build_train_loader(node, seed=seed, micro_batches=micro_batches)


def take(stream, count):
    batches = list(itertools.islice(iter(stream), count))
    return [[(r["image_id"], r["drawn"]) for r in batch] for batch in batches]


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_sequence_does_not_depend_on_workers_or_start(grouping, workers):
    options = {"aspect_ratio_grouping": grouping}
    expected = take(loader(**options), 20)
    stream = loader(num_workers=workers, **options)
    reading = iter(stream)
    begin = [[(r["image_id"], r["drawn"]) for r in next(reading)] for _ in range(7)]
    assert begin == expected[:7]
    resumed = loader(num_workers=workers, seed=1234, **options)
    resumed.load_state_dict(stream.state_dict())
    assert take(resumed, 13) == expected[7:]


def test_every_image_once_per_epoch_with_new_augmentations():
    batches = take(loader(aspect_ratio_grouping=False), 14)
    drawn = [item for batch in batches for item in batch]
    epochs = [drawn[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(i for i, _ in epoch) == list(range(7)) for epoch in epochs)
    assert len({noise for _, noise in drawn}) == 28


def test_a_batch_has_one_orientation():
    for batch in take(loader(), 12):
        assert len({image_id % 2 for image_id, _ in batch}) == 1


def test_generators_of_the_caller_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = (torch.rand(1), np.random.rand())
    torch.manual_seed(0)
    np.random.seed(0)
    take(loader(num_workers=1), 3)
    take(loader(), 3)
    assert (torch.rand(1), np.random.rand()) == expected


def test_micro_batches_are_parts_of_the_batch():
    whole = take(loader(total_batch_size=6, aspect_ratio_grouping=False), 4)
    parts = take(loader(total_batch_size=6, aspect_ratio_grouping=False, micro_batches=3), 12)
    assert [sum(parts[i : i + 3], []) for i in range(0, 12, 3)] == whole


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_sequence(monkeypatch, world_size):
    """The images of a step, and their augmentations, do not depend on the number of ranks."""
    from detectron2.utils import comm

    options = {"total_batch_size": 6, "aspect_ratio_grouping": False}
    whole = take(loader(**options), 5)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(comm, "all_gather", lambda data, group=None: [data])
    per_rank = []
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        per_rank.append(take(loader(**options), 5))
    for step, batch in enumerate(whole):
        assert sorted(batch) == sorted(item for rank in per_rank for item in rank[step])


def test_another_number_of_ranks_goes_on_at_the_same_image(monkeypatch):
    from detectron2.utils import comm

    stream = loader(total_batch_size=6, aspect_ratio_grouping=False)
    take(stream, 4)
    state = stream.state_dict()
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "all_gather", lambda data, group=None: [data])
    half = loader(total_batch_size=6, aspect_ratio_grouping=False)
    half.load_state_dict(state)
    assert (half.batch_size, half.batches_read) == (3, 4)


def test_configured_sampler_takes_the_seed_of_the_run():
    node = L(RepeatFactorTrainingSampler)(repeat_factors=torch.full((7,), 1.5), shuffle=True)
    runs = [take(loader(sampler=node, seed=seed), 8) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert node.get("seed", None) is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"total_batch_size": 0}, "positive multiple"),
        ({"total_batch_size": 5, "micro_batches": 2}, "total_batch_size=5.*1 x 2"),
    ],
)
def test_batch_sizes_that_cannot_be_shared_out(options, text):
    with pytest.raises(ValueError, match=text):
        loader(**options)


def test_grouping_needs_sizes():
    with pytest.raises(ValueError, match="aspect_ratio_grouping=False"):
        StreamLoader(
            dataset=[{"file_name": "a"}],
            mapper=None,
            make_sampler=lambda seed: [0],
            seed=0,
            total_batch_size=1,
        )


class Picky:
    """Rejects odd images, or everything."""

    def __init__(self, everything=False):
        self.everything = everything

    def __call__(self, record):
        odd = record["image_id"] % 2 == 1
        return None if odd or self.everything else {**record, "drawn": 0}


def test_rejected_records_are_replaced_loudly(caplog):
    batches = take(loader(mapper=L(Picky)(), aspect_ratio_grouping=False), 10)
    assert {i % 2 for batch in batches for i, _ in batch} == {0}
    assert "returned None for" in caplog.text and ".png (image id" in caplog.text
    with pytest.raises(SampleError, match="20 records in a row"):
        take(loader(mapper=L(Picky)(everything=True)), 1)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return itertools.cycle(records())


def test_other_loaders_are_used_as_they_are(caplog):
    node = L(build_detection_train_loader)(
        dataset=L(Endless)(), mapper=L(Noise)(), total_batch_size=2
    )
    stream = build_train_loader(node, seed=0)
    assert len(next(iter(stream))) == 2 and "restart the order" in caplog.text
    own = OmegaConf.create({"_target_": "builtins.list"})
    assert build_train_loader(own, seed=0) == []
    with pytest.raises(ValueError, match="grad_accum_steps needs"):
        build_train_loader(own, seed=0, micro_batches=2)


def clip_to(record):
    return record["limits"]


class OwnMapper:
    """A mapper with a mistake of its own, or one that reads the record's image."""

    def __init__(self, reads):
        self.reads = reads

    def __call__(self, record):
        return read_image(record["file_name"], "RGB") if self.reads else clip_to(record)


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_of_a_mapper_are_told_from_those_of_a_file(tmp_path, workers):
    options = {"aspect_ratio_grouping": False, "num_workers": workers}
    with pytest.raises(
        SampleError, match=r"fails on \d\.png.*KeyError: 'limits'.*test_train_stream"
    ) as caught:
        take(loader(mapper=L(OwnMapper)(reads=False), **options), 1)
    line = int(str(caught.value).partition("test_train_stream.py:")[2].partition(":")[0])
    assert "limits" in Path(__file__).read_text().splitlines()[line - 1]
    with pytest.raises(SampleError, match=r"cannot load \d\.png.*Repair the file"):
        take(loader(mapper=L(OwnMapper)(reads=True), **options), 1)
