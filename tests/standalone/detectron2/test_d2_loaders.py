"""Samplers, mapped data sets, batches, the default mapper."""
# Over 350 lines: one file per stand-in package.

import itertools
import pickle
from pathlib import Path

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
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.structures import BoxMode
from detectron2.utils import comm
from PIL import Image

from tests.standalone.detectron2.coco_files import annotation, box_polygon, random_coco, write_coco


def as_rank(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


def take(iterable, n: int) -> list:
    return list(itertools.islice(iterable, n))


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
    with pytest.raises(AssertionError, match=r"\(3\) must be divisible"):
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


@pytest.fixture
def image_file(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return str(path), pixels


def test_read_image_formats(image_file):
    path, pixels = image_file
    np.testing.assert_array_equal(utils.read_image(path, "RGB"), pixels)
    np.testing.assert_array_equal(utils.read_image(path, "BGR"), pixels[:, :, ::-1])
    np.testing.assert_array_equal(utils.read_image(path), pixels)
    assert utils.read_image(path, "L").shape == (20, 30, 1)
    for format in ("RGB", "BGR", "YUV-BT.601"):
        rgb = utils.convert_image_to_rgb(utils.read_image(path, format), format)
        assert rgb.dtype == np.uint8
        assert np.abs(rgb.astype(int) - pixels).max() <= (1 if format[0] == "Y" else 0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_unusual_pixel_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    source = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    if mode == "I;16":
        Image.fromarray(source[:, :, 0].astype(np.uint16)).save(path)
    else:
        Image.fromarray(source).convert(mode).save(path)
    image = utils.read_image(str(path), "RGB")
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """Pixels stored as each of the eight orientations prescribes come out upright."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    # Pixels as a camera stores them for each orientation, by EXIF's definition of the first row.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(utils.read_image(str(path), "RGB"), upright)


def test_unreadable_images_are_named(tmp_path, image_file):
    path, _ = image_file
    with pytest.raises(FileNotFoundError, match="gone"):
        utils.read_image(str(tmp_path / "gone.png"))
    for content in (b"", b"not an image", Path(path).read_bytes()[:400]):
        broken = tmp_path / "broken.png"
        broken.write_bytes(content)
        with pytest.raises(OSError, match="broken.png"):
            utils.read_image(str(broken), "RGB")


def test_size_mismatch_is_named(image_file):
    path, pixels = image_file
    record = {"file_name": path, "width": 31, "height": 20}
    with pytest.raises(utils.SizeMismatchError, match=r"image.png.*\(30, 20\), expect \(31, 20\)"):
        utils.check_image_size(record, pixels)
    empty: dict = {}
    utils.check_image_size(empty, pixels)
    assert empty == {"width": 30, "height": 20}


def test_annotations_become_instances_with_clipped_boxes():
    size = (20, 30)
    annos = [
        {"bbox": [25, 5, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2},
        {"bbox": [-5, -5, 4, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
    ]
    for a in annos:
        utils.transform_instance_annotations(a, T.NoOpTransform(), size)
    instances = utils.annotations_to_instances(annos, size)
    assert instances.gt_boxes.tensor.tolist() == [[25, 5, 30, 15], [0, 0, 0, 0]]
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False] and kept.gt_classes.tolist() == [2]
    none = utils.annotations_to_instances([], size)
    assert none.gt_boxes.tensor.shape == (0, 4) and none.gt_classes.dtype == torch.int64


def test_polygon_and_bitmask_targets_agree():
    size = (20, 30)

    def target(mask_format: str):
        anno = {
            "bbox": [4, 5, 10, 8],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": [box_polygon(4, 5, 10, 8)],
        }
        utils.transform_instance_annotations(anno, [T.HFlipTransform(30)], size)
        return utils.annotations_to_instances([anno], size, mask_format).gt_masks

    bits = target("bitmask").tensor[0]
    assert bits.sum() == 80 and bits[5:13, 16:26].all()
    box = target("polygon").get_bounding_boxes().tensor[0].tolist()
    assert box == [16, 5, 26, 13]


def test_keypoints_flip_with_the_image():
    keypoints = [5.0, 6.0, 2, 25.0, 8.0, 1, 40.0, 8.0, 2]
    moved = utils.transform_keypoint_annotations(
        keypoints, T.TransformList([T.HFlipTransform(30)]), (20, 30), np.array([1, 0, 2])
    )
    # The third point lies outside the image and becomes unlabeled.
    np.testing.assert_allclose(moved, [[5, 8, 1], [25, 6, 2], [0, 0, 0]])
    with pytest.raises(ValueError, match="flip indices"):
        utils.transform_keypoint_annotations(keypoints, T.HFlipTransform(30), (20, 30))


def test_mapper_reads_transforms_and_drops_crowds(tmp_path):
    annotations = [
        annotation(1, 1, 3, [10, 10, 20, 30]),
        annotation(2, 1, 7, [0, 0, 40, 40], iscrowd=1),
    ]
    json_file, root = write_coco(tmp_path, sizes=[(50, 60)], annotations=annotations)
    record = load_coco_json(json_file, root)[0]
    before = pickle.dumps(record)
    mapper = DatasetMapper(
        True, augmentations=[T.Resize((100, 120)), T.HFlipTransform(120)], image_format="RGB"
    )
    mapped = mapper(record)
    assert pickle.dumps(record) == before
    assert mapped["image"].shape == (3, 100, 120) and mapped["image"].dtype == torch.uint8
    assert (mapped["height"], mapped["width"]) == (50, 60)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[60, 20, 100, 80]]
    assert "annotations" not in mapped and not mapped["instances"].has("gt_masks")
    test_mapper = DatasetMapper(False, augmentations=[T.Resize((100, 120))], image_format="BGR")
    tested = test_mapper(record)
    assert "instances" not in tested and "annotations" not in tested


def test_mapper_options_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="instance masks"):
        DatasetMapper(True, augmentations=[], image_format="RGB", recompute_boxes=True)


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
