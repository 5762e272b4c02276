"""Values of options: any spelling, integers for counts, and ranges."""

import math
from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from omegaconf import OmegaConf
from torch import nn

from tokendetr.config.load import load_config
from tokendetr.config.model import check_device
from tokendetr.config.overrides import apply_overrides
from tokendetr.config.ranges import RANGES
from tokendetr.config.settings import check_settings
from tokendetr.errors import ConfigError


def config():
    cfg = OmegaConf.create({}, flags={"allow_objects": True})
    cfg.train = {
        "init_checkpoint": "",
        "output_dir": "out",
        "max_iter": 90000,
        "grad_accum_steps": 1,
        "clip_grad": {"params": {"max_norm": 0.1}},
        "wandb": {"enabled": False},
        "weight": 1,
    }
    cfg.dataloader = {
        "train": L(build_detection_train_loader)(total_batch_size=4, num_workers=2),
        "steps": [{"size": 1}, {"size": 2}],
    }
    cfg.model = L(nn.Linear)(in_features=3, out_features=4)
    cfg.model.criterion = {"weight_dict": {"loss_class": 2.0}}
    return cfg


@pytest.mark.parametrize(
    "value",
    [
        "x.pth?matching_heuristics=True",
        "epoch=3-step=9.pth",
        "modèles/größe.pth",
        "データ/重み.pth",
        "a b.pth",
        "it's.pth",
        "back\\slash=1.pth",
        "~cache/x.pth",
        "x(1).pth",
        "downloads/model (1).pth",
        "=cmd(1)/(a)=b",
    ],
)
def test_values_are_taken_as_they_are(value):
    cfg = apply_overrides(config(), [f"train.init_checkpoint={value}"])
    assert cfg.train.init_checkpoint == value


@pytest.mark.parametrize("value", ["20240101", "1e3", "1_000", "-1", ".5", "true", "inf"])
def test_paths_and_names_that_look_like_numbers_are_text(value):
    keys = ("train.output_dir", "train.init_checkpoint", "dataloader.train.dataset.names")
    before = config()
    before.dataloader.train.dataset = {"names": "shapes_train"}
    cfg = apply_overrides(before, [f"{key}={value}" for key in keys])
    assert [OmegaConf.select(cfg, key) for key in keys] == [value] * 3


@pytest.mark.parametrize(
    "override",
    [
        "train.max_iter=true",
        "train.max_iter=[1]",
        "train.max_iter={a: 1}",
        "train.wandb.enabled=7",
        "train.wandb=True",
        "train.wandb.enabled=null",
        "train.init_checkpoint=[1]",
        "train.output_dir={a: 1}",
        "dataloader.train.aspect_ratio_grouping=maybe",
        "model.bias=5",
        "train=5",
        "train=x",
        "model=null",
        "dataloader.steps=3",
        "dataloader.steps={size: 3}",
    ],
)
def test_values_of_another_kind_are_refused(override):
    with pytest.raises(ConfigError, match=r"cannot become"):
        apply_overrides(config(), [override])


def test_what_may_change_its_kind_does():
    options = ["train.wandb.enabled=1", "model.criterion=null", "dataloader.steps=[1]"]
    cfg = apply_overrides(config(), [*options, "train.max_iter=null", "train.weight=0.5"])
    assert cfg.train.wandb.enabled == 1 and cfg.model.criterion is None
    assert cfg.dataloader.steps == [1] and cfg.train.weight == 0.5
    with pytest.raises(ConfigError, match="train.max_iter=None must be a whole number"):
        check_settings(cfg)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.wandb=null", "train.wandb=None must be a group"),
        ("+train.seed=1.5", "train.seed=1.5 must be a whole number"),
        ("+train.seed=99999999999999999999", "must be a whole number below"),
        ("+model.num_classes=many", "model.num_classes=many must be a whole number"),
        ("+train.image_roots=[5]", "5, which is not a folder"),
        ("+dataloader.train.timeout=5", "needs loader processes"),
    ],
)
def test_slips_are_named_before_anything_is_built(override, words):
    cfg = apply_overrides(config(), ["dataloader.train.num_workers=0", override])
    with pytest.raises(ConfigError, match=words):
        check_settings(cfg)


def test_home_is_meant_by_a_tilde():
    cfg = apply_overrides(config(), ["train.output_dir=~/runs/a"])
    assert cfg.train.output_dir == str(Path.home() / "runs" / "a")


@pytest.mark.parametrize("text", ["+train.max_iter.x=5", "+train.output_dir.a.b=5"])
def test_nothing_is_added_below_a_value(text):
    with pytest.raises(ConfigError, match=r"override '\+train\."):
        apply_overrides(config(), [text])


def test_no_value_is_taken_away_by_an_override():
    with pytest.raises(ConfigError, match=r"train.output_dir=\?\?\? would leave"):
        apply_overrides(config(), ["train.output_dir=???"])


@pytest.mark.parametrize("text", ["train.max_iter", "train.max_iter 5", "train.steps=[1,"])
def test_what_is_no_override_is_refused(text):
    with pytest.raises(ConfigError, match="not of the form key=value"):
        apply_overrides(config(), [text])


def test_a_number_does_not_become_text_by_a_slip():
    with pytest.raises(ConfigError, match="cannot become the text"):
        apply_overrides(config(), ["train.max_iter==5"])


def test_whole_floats_are_counts():
    cfg = apply_overrides(config(), ["train.max_iter=1e4", "train.weight=1.5"])
    assert cfg.train.max_iter == 10000 and isinstance(cfg.train.max_iter, int)
    assert cfg.train.weight == 1.5
    cfg.train.max_iter = 2e1  # as in a config file
    check_settings(cfg)
    assert isinstance(cfg.train.max_iter, int)


def test_deletions_look_at_the_value():
    with pytest.raises(ConfigError, match="it is 90000 in the config"):
        apply_overrides(config(), ["~train.max_iter=99"])
    assert "max_iter" not in apply_overrides(config(), ["~train.max_iter=90000"]).train
    assert "max_iter" not in apply_overrides(config(), ["~train.max_iter"]).train
    cfg = apply_overrides(config(), ["~dataloader.steps.0"])
    assert cfg.dataloader.steps == [{"size": 2}]


@pytest.mark.parametrize(
    "override",
    [
        "train.clip_grad.params.max_norm=0",
        "train.clip_grad.params.max_norm=-1",
        "train.clip_grad.params.max_norm=nan",
        "train.max_iter=0",
        "train.max_iter=10.5",
        "train.grad_accum_steps=3",
        "dataloader.train.num_workers=-1",
        "dataloader.train.num_workers=1e9",
        "+model.transformer.encoder.num_layers=-1",
        "dataloader.train.total_batch_size=0",
        "+dataloader.train.prefetch_factor=4 dataloader.train.num_workers=0",
        "+optimizer.lr=-0.1",
        "+train.model_ema.decay=1.5",
        "+lr_multiplier.warmup_length=1",
        "model.criterion.weight_dict.loss_class=-2.0",
        "+model.encoder.ffn_dropout=1.0",
        "+train.model_ema.decay=1.0",
        "train.clip_grad.params.max_norm=null +train.clip_grad.enabled=True",
        "+train.clip_grad.params.norm_type=null +train.clip_grad.enabled=True",
        "+optimizer.lr=inf",
        "+optimizer.betas=[1.5,0.999]",
        "+optimizer.params.weight_decay_norm=-0.1",
        "+lr_multiplier.scheduler.start_value=-1.0",
        "+lr_multiplier.scheduler.values=[1.0,-0.1]",
        "+model.pixel_std=[58.4,0.0,57.4]",
        "+model.criterion.matcher.alpha=2.0",
        "+model.criterion.matcher.gamma=-1.0",
        "+model.position_embedding.temperature=0",
        "+model.sparsifier.loss_weight=-1.0",
        "+dataloader.train.mapper.augmentation.prob=2.0",
        "+dataloader.train.mapper.augmentation.short_edge_length=[480,0]",
        "+dataloader.train.mapper.augmentation.max_size=-1",
        "+dataloader.evaluator.max_dets_per_image=0",
        "+dataloader.evaluator.max_dets_per_image=[1,10,-100]",
    ],
)
def test_harmful_values_are_refused_by_name(override):
    cfg = apply_overrides(config(), override.split())
    with pytest.raises(ConfigError) as caught:
        check_settings(cfg)
    assert override.split()[0].lstrip("+").partition("=")[0] in str(caught.value)


def test_an_absent_package_is_said_before_anything_is_built(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("raise ImportError('absent')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_settings(apply_overrides(config(), ["train.wandb.enabled=True"]))


def test_the_settings_of_every_range_pass():
    """The limits themselves, and infinity if it means no limit."""
    check_settings(config())
    cfg = apply_overrides(config(), ["train.clip_grad.params.max_norm=inf"])
    check_settings(cfg)
    assert math.isinf(cfg.train.clip_grad.params.max_norm)
    assert all(wanted.holds(1) or wanted.holds(0.5) for wanted in RANGES.values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.in_features=null"], "model.in_features=null: Linear needs a value for"),
        (["~model.out_features"], "~model.out_features: Linear needs a value for"),
        (["~model._target_"], "~model._target_: .* the class that model builds"),
        (["dataloader.train.total_batch_size=null"], "build_detection_train_loader needs a value"),
        (["dataloader.steps.1=null"], r"remove it with ~dataloader\.steps\.1"),
    ],
)
def test_parts_that_their_owner_needs_are_not_left_out(overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(config(), overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["+dataloader.train.sampler=1", "dataloader.train.sampler=null"],
        ["~dataloader.train.num_workers"],
        ["~dataloader.steps.1"],
        ["dataloader.steps=null"],
        ["~model.in_features", "+model.in_features=7"],
        ["~model.criterion"],
    ],
)
def test_what_may_be_absent_may_be_left_out(overrides):
    apply_overrides(config(), overrides)


def unannotated_mapper(augmentation, augmentation_with_crop, size):
    """As detrex's mapper: nothing says that the crop may be None."""


def test_parts_of_an_owner_without_annotations_may_be_switched_off():
    cfg = config()
    cfg.dataloader.train.mapper = L(unannotated_mapper)(
        augmentation=[], augmentation_with_crop=[1], size=3
    )
    apply_overrides(cfg, ["dataloader.train.mapper.augmentation_with_crop=null"])
    assert cfg.dataloader.train.mapper.augmentation_with_crop is None
    with pytest.raises(ConfigError, match="unannotated_mapper needs a value for 'size'"):
        apply_overrides(cfg, ["dataloader.train.mapper.size=null"])


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("how", ["null", "absent"])
def test_loaders_without_records_or_reader_are_refused(part, how):
    cfg = config()
    loader = {"train": build_detection_train_loader, "test": build_detection_test_loader}[part]
    cfg.dataloader[part] = L(loader)(
        dataset=L(get_detection_dataset_dicts)(names="x"), mapper=None, num_workers=0
    )
    if how == "absent":
        del cfg.dataloader[part]["mapper"]
    with pytest.raises(ConfigError, match=f"dataloader.{part}.mapper has no value"):
        check_settings(cfg)
    cfg.dataloader[part].dataset = None
    with pytest.raises(ConfigError, match=f"dataloader.{part}.dataset has no value"):
        check_settings(cfg)
    cfg.dataloader[part].mapper = {"img_format": "XYZ"}
    with pytest.raises(ConfigError, match=f"dataloader.{part}.mapper.img_format=XYZ"):
        check_settings(cfg)


def test_parts_are_groups_however_they_are_set(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {a: 1}")
    with pytest.raises(ConfigError, match="model must be a group of keys, not 5"):
        load_config(str(path), ["+model=5"])


@pytest.mark.parametrize("device", ["meta", "mps", "vulkan", "nonsense"])
def test_devices_that_hold_no_tensor_here_are_refused(device):
    with pytest.raises(ConfigError, match=f"train.device is .*{device}.*use cuda or cpu"):
        check_device(device)


@pytest.mark.parametrize("dtype", ["half", "int8", "[bf16]", "16"])
def test_an_unknown_precision_is_said_before_anything_is_built(dtype):
    options = ["train.amp.enabled=True", f"train.amp.dtype={dtype}"]
    with pytest.raises(ConfigError, match="train.amp.dtype.*(use float16 or bfloat16|is text)"):
        load_config("dino_shapes", options)


@pytest.mark.parametrize(("batch", "is_hinted"), [(4, True), (16, False)])
def test_another_batch_size_gets_a_hint(toy_run, tmp_path, caplog, batch, is_hinted):
    caplog.set_level("INFO", logger="tokendetr.train")
    options = ["train.max_iter=2", "train.eval_period=0", "optimizer.lr=0.01"]
    toy_run(tmp_path, *options, f"dataloader.train.total_batch_size={batch}")
    hints = [r.getMessage() for r in caplog.records if "optimizer.lr=" in r.getMessage()]
    assert len(hints) == is_hinted
    if is_hinted:
        assert "batch size is 4" in hints[0]
        assert "optimizer.lr=0.0025 (linear scaling) or 0.005 (square root scaling)" in hints[0]
        assert "train.max_iter=8" in hints[0]
