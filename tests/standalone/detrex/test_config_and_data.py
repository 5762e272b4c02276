"""get_config, the shared configs, the dataset mapper and the wandb writer."""

import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from detrex.config import get_config, try_get_key
from detrex.data import DetrDatasetMapper
from detrex.utils import WandbWriter
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from tokendetr.config.fragments import get_fragment

UPSTREAM_STYLE_CONFIG = """
from detrex.config import get_config
from .models.tiny import model

dataloader = get_config("common/data/coco_detr.py").dataloader
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep
train = get_config("common/train.py").train

train.output_dir = "./output/tiny_12ep"
train.max_iter = 90000
train.checkpointer.period = 5000
train.clip_grad.enabled = True
train.clip_grad.params.max_norm = 0.1
train.device = "cpu"
model.bias = train.clip_grad.enabled
optimizer.lr = 2e-4
optimizer.params.lr_factor_func = lambda name: 0.1 if "backbone" in name else 1
dataloader.train.num_workers = 16
dataloader.evaluator.output_dir = train.output_dir
"""

UPSTREAM_STYLE_MODEL = """
import torch.nn as nn
from detectron2.config import LazyCall as L

model = L(nn.Linear)(in_features=2, out_features="${.in_features}")
"""


def multipliers(name, epochs):
    """Return the multiplier at the middle of every epoch."""
    schedule = instantiate(getattr(get_config("common/coco_schedule.py"), name))
    return [round(schedule((epoch + 0.5) / epochs), 6) for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("name", "epochs", "drop"),
    [
        ("lr_multiplier_12ep", 12, 11),
        ("lr_multiplier_24ep", 24, 20),
        ("lr_multiplier_36ep", 36, 30),
        ("lr_multiplier_50ep", 50, 40),
        ("lr_multiplier_12ep_warmup", 12, 11),
        ("lr_multiplier_50ep_warmup", 50, 40),
    ],
)
def test_schedules_drop_where_their_names_say(name, epochs, drop):
    assert multipliers(name, epochs) == [1.0] * drop + [0.1] * (epochs - drop)


def test_warmup_covers_a_thousandth_of_an_epoch_and_1x_drops_twice():
    schedule = instantiate(get_config("common/coco_schedule.py").lr_multiplier_12ep_warmup)
    assert schedule(0.0) == pytest.approx(0.001)
    assert schedule(1e-3 / 12 / 2) == pytest.approx(0.5005, rel=1e-3)
    once = instantiate(get_config("common/coco_schedule.py").lr_multiplier_1x)
    assert [once(x / 90000) for x in (500, 50000, 70000, 89000)] == pytest.approx(
        [0.5, 1, 0.1, 0.01], rel=2e-2
    )


def test_train_has_detrexs_defaults():
    train = get_config("common/train.py").train
    expected = {
        "max_iter": 90000,
        "amp.enabled": False,
        "clip_grad.enabled": False,
        "clip_grad.params.max_norm": 0.1,
        "clip_grad.params.norm_type": 2,
        "ddp.find_unused_parameters": False,
        "seed": -1,
        "fast_dev_run.enabled": False,
        "checkpointer.period": 5000,
        "checkpointer.max_to_keep": 100,
        "eval_period": 5000,
        "log_period": 20,
        "wandb.enabled": False,
        "model_ema.enabled": False,
        "model_ema.decay": 0.999,
        "device": "cuda",
        "init_checkpoint": "",
        "output_dir": "./output",
    }
    assert {key: OmegaConf.select(train, key) for key in expected} == expected


def test_a_config_in_upstreams_style_loads_and_builds(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.py").write_text(UPSTREAM_STYLE_MODEL)
    (tmp_path / "tiny_12ep.py").write_text(UPSTREAM_STYLE_CONFIG)
    cfg = LazyConfig.load(str(tmp_path / "tiny_12ep.py"))
    assert set(cfg) >= {"model", "dataloader", "optimizer", "lr_multiplier", "train"}
    model = nn.ModuleDict({"backbone": instantiate(cfg.model), "head": nn.Linear(2, 1)})
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    rates = {id(g["params"][0]): g["lr"] for g in optimizer.param_groups}
    found = {p: rates.get(id(p)) for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == 4 and set(rates.values()) == {2e-5, 2e-4}
    assert cfg.dataloader.evaluator.output_dir == "./output/tiny_12ep"
    assert cfg.dataloader.evaluator.dataset_name == "coco_2017_val"


def test_every_load_of_a_config_is_a_fresh_copy():
    get_config("common/train.py").train.max_iter = 7
    assert get_config("common/train.py").train.max_iter == 90000


def assert_trains_and_tests(dataloader, train, test):
    assert dataloader.train.dataset.names == train and dataloader.test.dataset.names == test
    assert dataloader.train.total_batch_size == 16
    evaluated = OmegaConf.select(dataloader, "evaluator.dataset_name")
    assert evaluated == test
    mapper = instantiate(dataloader.train.mapper)
    assert mapper.is_train and len(mapper.augmentation) == 2
    assert len(mapper.augmentation_with_crop) == 4
    assert not instantiate(dataloader.test.mapper).is_train


def test_data_config_builds_mappers_that_train_and_test():
    dataloader = get_config("common/data/coco_detr.py").dataloader
    assert_trains_and_tests(dataloader, "coco_2017_train", "coco_2017_val")


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("lvis_detr", "lvis_v1_train", "lvis_v1_val"),
        ("voc_detr", ["voc_2007_trainval", "voc_2012_trainval"], "voc_2007_test"),
        ("voc2007_detr", "voc_2007_trainval", "voc_2007_test"),
        ("voc2012_detr", "voc_2012_train", "voc_2012_val"),
        ("bdd100k_detr", "bdd100k_train", "bdd100k_val"),
    ],
)
def test_further_data_configs_build_mappers_that_train_and_test(name, train, test):
    assert_trains_and_tests(get_fragment(f"data/{name}.py").dataloader, train, test)


def test_missing_fragment_lists_what_there_is():
    with pytest.raises(FileNotFoundError, match=r"data/coco_dert\.py.*data/coco_detr\.py"):
        get_fragment("data/coco_dert.py")


def test_missing_config_lists_what_there_is():
    with pytest.raises(RuntimeError, match=r"common/trian.py not available.*common/train.py"):
        get_config("common/trian.py")


def test_try_get_key_takes_the_first_key_that_exists():
    cfg = OmegaConf.create({"a": {"b": 1}, "c": None})
    assert try_get_key(cfg, "x.y", "a.b") == 1
    assert try_get_key(cfg, "x", default=5) == 5


@pytest.fixture
def record(tmp_path):
    """Return a 40 x 60 image, red above and green below, with three annotations."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:20, :, 0] = 255
    pixels[20:, :, 1] = 255
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    box = {"bbox": [10.0, 5.0, 20.0, 10.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3}
    polygon = [[10.0, 5.0, 30.0, 5.0, 30.0, 15.0, 10.0, 15.0]]
    return {
        "file_name": str(path),
        "height": 40,
        "width": 60,
        "image_id": 7,
        "annotations": [
            {**box, "iscrowd": 0, "segmentation": polygon, "keypoints": [1, 2, 2]},
            {**box, "iscrowd": 1},
            {**box, "iscrowd": 0, "bbox": [50.0, 30.0, 0.0, 4.0]},
        ],
    }


def test_mapper_reads_transforms_and_filters(record):
    mapper = DetrDatasetMapper([T.Resize((80, 120)), T.RandomFlip(prob=1.0)], None)
    out = mapper(record)
    assert out["image"].shape == (3, 80, 120) and out["image"].dtype == torch.uint8
    assert out["image"][:, 0, 0].tolist() == [255, 0, 0]
    # twice the size, then mirrored; the crowd and the box without width are gone
    assert out["instances"].gt_boxes.tensor.tolist() == [[60.0, 10.0, 100.0, 30.0]]
    assert out["instances"].gt_classes.tolist() == [3]
    assert not out["instances"].has("gt_masks")
    assert "annotations" not in out and out["image_id"] == 7
    # the record stays as it was
    assert len(record["annotations"]) == 3 and "keypoints" in record["annotations"][0]


def test_mapper_keeps_masks_on_request_and_reverses_channels(record):
    record["annotations"] = record["annotations"][:1]
    out = DetrDatasetMapper([T.Resize((80, 120))], None, mask_on=True, img_format="BGR")(record)
    assert out["image"][:, 0, 0].tolist() == [0, 0, 255]
    assert out["instances"].gt_masks.area().tolist() == [40.0 * 20.0]


def test_mapper_for_evaluation_has_no_instances(record):
    out = DetrDatasetMapper([T.Resize((20, 30))], None, is_train=False)(record)
    assert out["image"].shape == (3, 20, 30)
    assert "annotations" not in out and "instances" not in out
    assert (out["height"], out["width"]) == (40, 60)


def test_mapper_without_boxes_gives_empty_instances(record):
    record["annotations"] = []
    instances = DetrDatasetMapper([T.Resize((20, 30))], None)(record)["instances"]
    assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)


def test_mapper_crops_every_other_image(record):
    np.random.seed(0)
    mapper = DetrDatasetMapper([T.Resize((40, 60))], [T.Resize((10, 10))])
    cropped = sum(mapper(record)["image"].shape == (3, 10, 10) for _ in range(200))
    assert 70 < cropped < 130


def test_mapper_names_missing_and_mismatched_images(record, tmp_path):
    mapper = DetrDatasetMapper([T.Resize((20, 30))], None)
    with pytest.raises(FileNotFoundError, match="gone.png"):
        mapper({**record, "file_name": str(tmp_path / "gone.png")})
    with pytest.raises(Exception, match="image.png"):
        mapper({**record, "height": 41})


class FakeRun:
    """Record what is sent to a wandb run."""

    def __init__(self):
        self.logged, self.finished = [], False

    def log(self, values, step):
        self.logged.append((values, step))

    def finish(self):
        self.finished = True


def wandb_config():
    return OmegaConf.create({"train": {"wandb": {"params": {"project": "p", "name": "n"}}}})


def test_wandb_writer_sends_each_value_once(monkeypatch):
    run, wandb = FakeRun(), ModuleType("wandb")
    asked = {}
    wandb.init = lambda **kwargs: asked.update(kwargs) or run
    wandb.Image = lambda pixels, caption: (pixels.shape, caption)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    writer = WandbWriter(wandb_config())
    assert (asked["project"], asked["name"]) == ("p", "n")
    assert (
        type(asked["config"]) is dict and asked["config"]["train"]["wandb"]["params"]["name"] == "n"
    )
    with EventStorage(3) as storage:
        storage.put_scalar("loss", 2.0, smoothing_hint=False)
        storage.put_image("sample", np.zeros((3, 4, 5), dtype=np.uint8))
        writer.write()
        writer.write()
    assert run.logged == [({"loss": 2.0}, 3), ({"sample": ((4, 5, 3), "sample")}, 3)]
    writer.close()
    assert run.finished


def test_wandb_writer_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        WandbWriter(wandb_config())


def test_step_schedules_by_iterations():
    path = Path(__file__).parents[3] / "configs" / "common" / "common_schedule.py"
    schedules = runpy.run_path(str(path))
    multistep = instantiate(
        schedules["multistep_lr_scheduler"](num_updates=100, milestones=[80], warmup_steps=10)
    )
    assert [multistep(x) for x in (0.0, 0.05, 0.5, 0.9)] == pytest.approx([0.001, 0.5005, 1, 0.1])
    step = instantiate(schedules["step_lr_scheduler"]([1.0, 0.5], 0, 100))
    assert [step(x) for x in (0.25, 0.75)] == [1.0, 0.5]
    gamma = instantiate(schedules["step_lr_scheduler_with_fixed_gamma"](1.0, 1, 0.2, 100, 0))
    assert [gamma(x) for x in (0.25, 0.75)] == pytest.approx([1.0, 0.2])


def test_mask_coco_config_shares_the_image_format():
    dataloader = get_config("common/data/coco.py").dataloader
    dataloader.train.mapper.image_format = "RGB"
    assert dataloader.test.mapper.image_format == "RGB"
