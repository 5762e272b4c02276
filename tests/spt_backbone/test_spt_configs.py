"""SPT's configs: under DETR detectors, under detectron2's own models, and on BDD-S."""

import copy
import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone import FPN
from omegaconf import OmegaConf
from torch import nn

from dynamic_detr import DynamicSparsifier
from spt_backbone import SPT
from spt_backbone.config import use_spt, watch_selection
from tests.source_tree import ROOT
from token_transforming.config import transform_backbone
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.checkpoint.weights import load_weights
from tokendetr.config import edit, resize, sparsify, target_name, zoo
from tokendetr.data.object_ratio import object_ratio
from tokendetr.errors import ConfigError

CONFIGS = ROOT / "projects" / "spt_backbone" / "configs"
DETR = sorted(path.stem for path in CONFIGS.glob("spt_*.py"))
RCNN = sorted(path.stem for path in CONFIGS.glob("*mask_rcnn_*.py"))


def test_every_detector_and_size_has_its_config():
    for detector in ("dino", "deformable_detr", "dab_deformable_detr", "dn_deformable_detr"):
        for size in ("tiny", "small"):
            assert [name for name in DETR if name.startswith(f"spt_{detector}_{size}")]
    assert {"spt_h_deformable_detr_small_two_stage_12ep", "spt_dino_shapes"} <= set(DETR)
    for model in ("mask_rcnn_spt_tiny", "mask_rcnn_spt_small", "cascade_mask_rcnn_spt_base"):
        assert {f"{model}_36ep", f"{model}_bdd100k_36ep", f"{model}_bdd_s_36ep"} <= set(RCNN)


@pytest.mark.parametrize("name", DETR)
def test_a_config_is_consistent(name):
    config = zoo.get_config(name)
    backbone, neck = config.model.backbone, config.model.neck
    assert target_name(config.model._target_) == "tokendetr.config.wrap.build_observed"
    for index in backbone.out_indices:
        assert neck.input_shapes[f"p{index}"].channels == backbone.embed_dim * 2**index
    assert list(neck.in_features) == [f"p{index}" for index in backbone.out_indices]
    assert config.train.output_dir == f"./output/{name}"
    assert config.dataloader.evaluator.output_dir == config.train.output_dir
    assert config.dataloader.evaluator.wrapped_target.endswith("COCOEvaluator")
    if "shapes" not in name:
        assert ("tiny" in name) == ("swin_tiny" in config.train.init_checkpoint)
        assert sum(backbone.depths) == (16 if "tiny" in name else 28)
        factor = instantiate(config.optimizer.params.lr_factor_func)
        assert factor("backbone.layers.2.blocks.0.gate") == 1.0
        assert factor("backbone.layers.2.blocks.0.attn.qkv") == 0.1


def test_the_combined_config_has_a_backbone_and_an_encoder_method():
    model = zoo.get_config("spt_dynamic_dino_tiny_4scale_12ep").model
    model.device = "cpu"
    model.backbone.depths = (1, 1, 1, 1)
    detector = instantiate(model)
    assert isinstance(detector.transformer.encoder.sparsifier, DynamicSparsifier)
    assert hasattr(detector.backbone.layers[3].blocks[0], "gate")


def test_the_dense_twins_weights_load_and_the_fresh_keys_are_named(tmp_path, caplog):
    config = zoo.get_config("dino_shapes_swin")
    config.model.device = "cpu"
    dense = instantiate(config.model)
    path = str(tmp_path / "dense.safetensors")
    save_safetensors(dense, path, dtype=torch.float32)
    config = zoo.get_config("spt_dino_shapes")
    config.model.device = "cpu"
    sparse = instantiate(config.model)
    assert sum(parameter.numel() for parameter in sparse.parameters()) < 4e6
    assert not config.train.init_checkpoint_strict
    with caplog.at_level(logging.INFO, "tokendetr"):
        report = load_weights(AtomicCheckpointer(sparse), path, strict=False)
    assert not report.unexpected and not report.wrong_shape
    assert len(report.missing) == 14 and all(".gate." in key for key in report.missing)
    assert "backbone.layers.2.blocks.{0,1,2,3}.gate.{weight,bias}" in caplog.text
    for name, tensor in dense.state_dict().items():
        assert torch.equal(sparse.state_dict()[name], tensor), name


def test_imagenet_weights_of_swin_load_by_name(tmp_path):
    """Files of Swin's authors: the backbone's keys without a prefix, and a classifier."""
    model = zoo.get_config("spt_dino_tiny_4scale_12ep").model
    model.device = "cpu"
    model.backbone.embed_dim, model.backbone.num_heads = 12, (1, 2, 3, 6)
    model.backbone.depths = (1, 1, 3, 1)
    for index in (1, 2, 3):
        model.neck.input_shapes[f"p{index}"].channels = 12 * 2**index
    detector = instantiate(model)
    prefix = "backbone."
    weights = {
        name.removeprefix(prefix): torch.full_like(value, 0.25)
        for name, value in detector.state_dict().items()
        if name.startswith(prefix)
        and ".gate." not in name
        and "blocks.2." not in name
        # and the norms of the outputs, which a classifier does not have
        and not name.startswith(("backbone.gate", "backbone.norm"))
        and value.is_floating_point()
    }
    weights["head.weight"] = torch.zeros(1000, 96)
    torch.save({"model": weights}, tmp_path / "swin.pth")
    report = load_weights(
        AtomicCheckpointer(detector), f"{tmp_path}/swin.pth?matching_heuristics=True"
    )
    assert len(report.matched) >= len(weights) - 1
    for name in weights:
        if name != "head.weight":
            assert (detector.state_dict()[prefix + name] == 0.25).all(), name
    fresh = detector.backbone.layers[2].blocks[2].attn.qkv.weight
    assert not (fresh == 0.25).any()


class Pyramid(nn.Module):
    def __init__(self, bottom_up, in_features):
        super().__init__()
        self.bottom_up = bottom_up


class TwoStage(nn.Module):
    def __init__(self, backbone, roi_heads, pixel_mean, pixel_std, input_format):
        super().__init__()
        self.backbone = backbone


def stand_in(name):
    """Return detectron2's config, reduced to what ours change."""
    heads = dict(num_classes=80, mask_in_features=[], mask_pooler={}, mask_head={})
    return SimpleNamespace(
        model=L(TwoStage)(
            backbone=L(Pyramid)(bottom_up=None, in_features=None),
            roi_heads={**heads, "cascade": "cascade" in name},
            pixel_mean=[0.0],
            pixel_std=[1.0],
            input_format="BGR",
        )
    )


@pytest.mark.parametrize("name", RCNN)
def test_detectron2s_models_get_spt_where_detectron2_is_installed(name, monkeypatch):
    monkeypatch.setattr(edit, "get_config", stand_in)
    config = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    model, bdd = config.model, "bdd" in name
    assert model.roi_heads.num_classes == (10 if bdd else 80)
    assert ("mask_head" in model.roi_heads) == (not bdd)
    assert model.roi_heads.cascade == ("cascade" in name)
    assert list(model.backbone.in_features) == ["p0", "p1", "p2", "p3"]
    bottom_up = model.backbone.bottom_up
    assert bottom_up.selection_labels == ("boxes" if bdd else "masks")
    assert (sum(bottom_up.depths), bottom_up.embed_dim) == {
        "tiny": (16, 96),
        "small": (28, 96),
        "base": (28, 128),
    }[name.split("spt_")[1].split("_")[0]]
    expected = "coco_2017" if not bdd else "bdd_s" if "bdd_s" in name else "bdd100k"
    assert config.dataloader.train.dataset.names == f"{expected}_train"
    assert config.dataloader.train.mapper.use_instance_mask == (not bdd)
    assert config.train.output_dir == f"./output/{name}"
    bottom_up.depths = (1, 1, 1, 1)
    assert set(instantiate(model).backbone.bottom_up.output_shape()) == {"p0", "p1", "p2", "p3"}


def test_without_detectron2_the_error_is_one_line():
    try:
        from detectron2.modeling import roi_heads  # noqa: F401

        pytest.skip("detectron2 itself is installed")
    except ImportError:
        pass
    with pytest.raises(ConfigError, match=r"^[^\n]*needs detectron2 itself[^\n]*$"):
        zoo.get_config("mask_rcnn_spt_tiny_36ep")


@pytest.mark.parametrize("seed", range(5))
def test_object_ratio_counts_overlaps_once(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randint(-5, 40, (6, 4), generator=generator)
    boxes[:, 2:] = boxes[:, 2:].abs() // 2
    raster = torch.zeros(30, 50, dtype=torch.bool)
    for x, y, width, height in boxes.tolist():
        raster[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
    expected = float(raster.float().mean())
    assert object_ratio(boxes.tolist(), 30, 50) == pytest.approx(expected)
    assert object_ratio([], 30, 50) == 0.0


def make_bdd_s(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_bdd_s.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_bdd_s_holds_the_images_with_few_object_pixels(tmp_path):
    folder = tmp_path / "jsons"
    folder.mkdir()
    sides = {1: 49, 2: 50, 3: 10, 4: 0}
    content = {
        "images": [{"id": i, "height": 100, "width": 100, "file_name": f"{i}.jpg"} for i in sides],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            {"id": 10 * i + n, "image_id": i, "bbox": [3, 3, side, side], "category_id": 1}
            for i, side in sides.items()
            for n in range(2 if side else 0)
        ],
    }
    for split in ("train", "val"):
        (folder / f"det_{split}_cocofmt.json").write_text(json.dumps(content))
    result = make_bdd_s("--root", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "3 of 4 images" in result.stdout
    for split in ("train", "val"):
        small = json.loads((folder / f"det_{split}_small_cocofmt.json").read_text())
        assert [image["id"] for image in small["images"]] == [1, 3, 4]
        assert {a["image_id"] for a in small["annotations"]} == {1, 3}
        assert small["categories"] == content["categories"]
    source = str(folder / "det_val_cocofmt.json")
    result = make_bdd_s("--input", source, "--output", f"{tmp_path}/x.json", "--max-ratio", "0")
    assert result.returncode != 0 and "max_ratio must lie in" in result.stderr
    assert not (tmp_path / "x.json").exists()


def pyramid_model(in_features=("res2", "res3", "res4", "res5")):
    return L(TwoStage)(
        backbone=L(FPN)(bottom_up=L(nn.Identity)(), in_features=list(in_features), out_channels=16),
        roi_heads={},
        pixel_mean=[0.0],
        pixel_std=[1.0],
        input_format="BGR",
    )


def narrow_spt(out_indices=(0, 1, 2, 3)):
    return L(SPT)(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), out_indices=out_indices)


def test_spt_takes_the_place_of_a_pyramids_bottom_up():
    model = use_spt(pyramid_model(), narrow_spt())
    assert target_name(model.backbone._target_).endswith(".FPN")
    built = instantiate(model)
    assert type(built) is TwoStage
    assert len(built._forward_hooks) == 1  # observed
    assert type(built.backbone.bottom_up) is SPT
    maps = built.backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(maps[name].shape) for name in ("p2", "p5")] == [(1, 16, 16, 24), (1, 16, 2, 3)]


def dino():
    """Return a model without the part that resize() changes last."""
    model = copy.deepcopy(zoo.get_config("spt_dino_tiny_4scale_12ep").model)
    del model["position_embedding"]
    return model


@pytest.mark.parametrize(
    ("edit_config", "model", "error"),
    [
        (lambda model: use_spt(model, narrow_spt((1, 2, 3))), pyramid_model, ValueError),
        (
            lambda model: use_spt(model, narrow_spt()),
            lambda: L(TwoStage)(backbone=L(nn.Identity)()),
            KeyError,
        ),
        (lambda model: use_spt(model, L(SPT)(embed_dim=8)), pyramid_model, Exception),
        (lambda model: transform_backbone(model, layer=(1,)), pyramid_model, TypeError),
        (lambda model: resize(model, width=8, num_heads=2, feedforward_dim=8), dino, Exception),
        (lambda model: sparsify(model, L(nn.Identity)()), pyramid_model, KeyError),
        (
            lambda model: watch_selection(model),
            lambda: OmegaConf.create({"dataset_name": "x"}),
            KeyError,
        ),
    ],
)
def test_an_edit_that_fails_leaves_the_config_as_it_was(edit_config, model, error):
    config = model()
    before = repr(OmegaConf.to_container(config))
    with pytest.raises(error):
        edit_config(config)
    assert repr(OmegaConf.to_container(config)) == before
