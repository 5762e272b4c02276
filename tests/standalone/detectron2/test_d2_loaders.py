"""Mapped data sets, batches and loaders."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.data.samplers import (
    TrainingSampler,
)

from tests.standalone.detectron2.coco_files import random_coco
from tests.standalone.detectron2.ranks import take


def test_dataset_from_list_gives_fresh_equal_items():
    items = [{"a": [1, 2], "b": "x" * i} for i in range(5)]
    for serialize in (True, False):
        dataset = DatasetFromList(items, serialize=serialize)
        first = dataset[2]
        first["a"].append(9)
        assert dataset[2] == items[2] == {"a": [1, 2], "b": "xx"}
        assert len(dataset) == 5 and dataset[-1] == items[-1]
        with pytest.raises(IndexError):
            dataset[5]
    assert pickle.loads(pickle.dumps(DatasetFromList(items)))[4] == items[4]
    assert len(DatasetFromList([])) == 0


def test_map_dataset_replaces_items_without_result():
    dataset = MapDataset(list(range(10)), lambda x: x if x % 2 == 0 else None)
    results = [dataset[i] for i in range(10)]
    assert results[::2] == [0, 2, 4, 6, 8]
    assert all(r % 2 == 0 for r in results)
    again = pickle.loads(pickle.dumps(MapDataset([1, 2], lambda x: x * 10)))
    assert again[1] == 20
    with pytest.raises(ValueError, match="each of the 3 items"):
        MapDataset([1, 2, 3], lambda x: None)[0]


def test_map_dataset_skips_in_a_stream():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(6))

    assert list(MapDataset(Stream(), lambda x: x * 2 if x != 3 else None)) == [0, 2, 4, 8, 10]


def test_aspect_ratio_groups_do_not_mix_and_keep_order():
    rng = np.random.default_rng(0)
    items = [
        {"width": int(w), "height": 50, "i": i} for i, w in enumerate(rng.choice([30, 80], 101))
    ]
    batches = list(AspectRatioGroupedDataset(items, 4))
    assert all(len(b) == 4 for b in batches)
    assert all(len({d["width"] for d in b}) == 1 for b in batches)
    for width in (30, 80):
        order = [d["i"] for b in batches for d in b if d["width"] == width]
        assert order == sorted(order)
        # Nothing is lost but the rest that does not fill a batch.
        total = sum(d["width"] == width for d in items)
        assert len(order) == total // 4 * 4


def records(n: int = 12) -> list[dict]:
    return [{"id": i, "width": 80 if i % 3 else 30, "height": 50} for i in range(n)]


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_is_repeatable_by_seed(grouping, num_workers):
    def ids(seed: int) -> list[list[int]]:
        loader = build_detection_train_loader(
            records(),
            mapper=lambda r: {**r, "noise": float(np.random.rand())},
            sampler=TrainingSampler(12, seed=seed),
            total_batch_size=3,
            aspect_ratio_grouping=grouping,
            num_workers=num_workers,
            seed=5,
        )
        np.random.seed(0)
        return [[(d["id"], d["noise"]) for d in batch] for batch in take(loader, 6)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_workers_draw_different_numbers():
    loader = build_detection_train_loader(
        records(),
        mapper=lambda r: float(np.random.rand()),
        total_batch_size=2,
        aspect_ratio_grouping=False,
        num_workers=2,
    )
    numbers = list(itertools.chain(*take(loader, 8)))
    assert len(set(numbers)) == len(numbers)


def test_train_loader_splits_the_batch_over_ranks(monkeypatch):
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    loader = build_detection_train_loader(
        records(), mapper=None, total_batch_size=4, aspect_ratio_grouping=False
    )
    assert len(next(iter(loader))) == 2
    with pytest.raises(AssertionError, match=r"\b3\b.*\b2\b"):
        build_detection_train_loader(records(), mapper=None, total_batch_size=3)


def test_worker_count_does_not_change_the_items_of_a_pass():
    def one_pass(num_workers: int) -> list[int]:
        loader = build_detection_train_loader(
            records(),
            mapper=lambda r: r["id"],
            sampler=TrainingSampler(12, seed=3),
            total_batch_size=2,
            aspect_ratio_grouping=False,
            num_workers=num_workers,
        )
        return sorted(itertools.chain(*take(loader, 6)))

    assert one_pass(0) == one_pass(2) == list(range(12))


def test_collate_function_sees_the_batch():
    for grouping in (True, False):
        loader = build_detection_train_loader(
            records(),
            mapper=None,
            total_batch_size=2,
            aspect_ratio_grouping=grouping,
            collate_fn=len,
        )
        assert take(loader, 3) == [2, 2, 2]


def test_test_loader_reads_everything_once_in_order():
    loader = build_detection_test_loader(records(7), mapper=lambda r: r["id"], batch_size=3)
    assert list(loader) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(loader) == 3


def test_loader_over_images_with_workers(tmp_path):
    json_file, root = random_coco(tmp_path)
    dicts = load_coco_json(json_file, root, None)
    augmentations = [T.ResizeShortestEdge((60, 80), 120), T.RandomFlip()]
    mapper = DatasetMapper(True, augmentations=augmentations, image_format="RGB")
    loader = build_detection_train_loader(dicts, mapper=mapper, total_batch_size=2, num_workers=2)
    for batch in take(loader, 6):
        assert len(batch) == 2
        wider = [d["width"] > d["height"] for d in batch]
        assert wider[0] == wider[1]
        for item in batch:
            height, width = item["image"].shape[1:]
            boxes = item["instances"].gt_boxes.tensor
            assert (boxes >= 0).all() and (boxes[:, 2] <= width).all()
            assert (boxes[:, 3] <= height).all()


def test_a_lazy_config_builds_the_loaders(tmp_path):
    json_file, root = random_coco(tmp_path)
    register_coco_instances("test_lazy_loader", {}, json_file, root)
    train = LazyCall(build_detection_train_loader)(
        dataset=LazyCall(get_detection_dataset_dicts)(names="test_lazy_loader"),
        mapper=LazyCall(DatasetMapper)(
            is_train=True,
            augmentations=[
                LazyCall(T.RandomCrop)(crop_type="absolute_range", crop_size=(60, 90)),
                LazyCall(T.ResizeShortestEdge)(
                    short_edge_length=(64, 80), sample_style="choice", max_size=128
                ),
                LazyCall(T.RandomFlip)(),
            ],
            image_format="BGR",
            use_instance_mask=True,
        ),
        total_batch_size=2,
        num_workers=0,
    )
    item = next(iter(instantiate(train)))[0]
    assert min(item["image"].shape[1:]) in (64, 80)
    assert len(item["instances"].gt_masks) == len(item["instances"])
    test = LazyCall(build_detection_test_loader)(
        dataset=LazyCall(get_detection_dataset_dicts)(
            names=["test_lazy_loader"], filter_empty=False
        ),
        mapper=LazyCall(DatasetMapper)(is_train=False, augmentations=[], image_format="RGB"),
    )
    assert len(instantiate(test)) == 12
