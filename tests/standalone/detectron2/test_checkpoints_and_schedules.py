"""Checkpoints of every kind, refused files, name matching, schedules, parameter groups."""

import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_basic_c2_names,
)
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.solver import LRMultiplier, WarmupParamScheduler, get_default_optimizer_params
from detectron2.solver.build import reduce_param_groups
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        stages = ResNet.make_default_stages(18, norm="FrozenBN")[:1]
        self.backbone = ResNet(BasicStem(norm="FrozenBN"), stages)
        self.head = nn.Linear(64, 4)
        self.register_buffer("pixel_mean", torch.zeros(3))


def numpy_backbone(model):
    return {
        key: np.random.rand(*value.shape).astype("float32")
        for key, value in model.backbone.state_dict().items()
    }


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_zoo_pickles_find_their_place_by_suffix(tmp_path, protocol):
    model = Detector()
    weights = numpy_backbone(model)
    file = tmp_path / "R-18.pkl"
    content = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    before = model.head.weight.clone()
    DetectionCheckpointer(model).load(str(file))
    for key, value in model.backbone.state_dict().items():
        assert np.array_equal(value.numpy(), weights[key]), key
    assert torch.equal(model.head.weight, before)


def test_caffe2_pickles_are_renamed(tmp_path):
    model = Detector()
    stem = np.random.rand(64, 3, 7, 7).astype("float32")
    scale = np.random.rand(64).astype("float32")
    blobs = {"conv1_w": stem, "conv1_w_momentum": stem, "res2_0_branch2a_bn_s": scale}
    file = tmp_path / "C2.pkl"
    file.write_bytes(pickle.dumps({"blobs": blobs}))
    DetectionCheckpointer(model).load(str(file))
    assert np.array_equal(model.backbone.stem.conv1.weight.detach().numpy(), stem)
    assert np.array_equal(model.backbone.res2[0].conv1.norm.weight.numpy(), scale)


def test_caffe2_names_become_detectron2s():
    names = {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res2_0_branch1_bn_b": "res2.0.shortcut.norm.bias",
        "res4_22_branch2b_w": "res4.22.conv2.weight",
        "res3_0_branch2c_bn_riv": "res3.0.conv3.norm.running_var",
        "fpn_inner_res2_2_sum_lateral_w": "fpn_lateral2.weight",
        "fpn_res3_3_sum_b": "fpn_output3.bias",
        "pred_w": "linear.weight",
    }
    assert convert_basic_c2_names(list(names)) == list(names.values())


def test_matching_prefers_the_longest_suffix_and_keeps_strangers():
    model = {
        "a.conv.weight": torch.zeros(2),
        "a.b.conv.weight": torch.zeros(2),
        "x": torch.zeros(3),
    }
    given = {
        "conv.weight": torch.ones(2),
        "b.conv.weight": torch.full((2,), 2.0),
        "x": torch.zeros(4),
        "stranger": torch.zeros(1),
    }
    result = align_and_update_state_dicts(model, given, c2_conversion=False)
    assert result["a.conv.weight"].tolist() == [1, 1]
    assert result["a.b.conv.weight"].tolist() == [2, 2]
    assert "stranger" in result and "x" not in result
    model["c.conv.weight"] = torch.zeros(2)
    with pytest.raises(ValueError, match="conv.weight.*fits two"):
        align_and_update_state_dicts(model, given, c2_conversion=False)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_code_in_checkpoints_is_refused(tmp_path, suffix):
    model, trap = Detector(), tmp_path / "executed"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    file = tmp_path / f"evil{suffix}"
    if suffix == ".pkl":
        file.write_bytes(pickle.dumps({"model": {"head.weight": Evil(trap)}, "__author__": "x"}))
    else:
        torch.save({"model": {"head.weight": Evil(trap)}}, file)
    with pytest.raises(ValueError, match="evil.* is not a plain checkpoint"):
        DetectionCheckpointer(model).load(str(file))
    assert not trap.exists()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_damaged_and_missing_files(tmp_path, suffix):
    file = tmp_path / f"half{suffix}"
    torch.save({"model": Detector().state_dict()}, file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="half.* not a plain checkpoint"):
        DetectionCheckpointer(Detector()).load(str(file))
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="half.* not a plain checkpoint"):
        DetectionCheckpointer(Detector()).load(str(file))
    with pytest.raises(FileNotFoundError, match="gone"):
        DetectionCheckpointer(Detector()).load(str(tmp_path / f"gone{suffix}"))


def test_bare_state_dicts_and_queries(tmp_path):
    source, target = Detector(), Detector()
    bare = tmp_path / "bare.pth"
    torch.save(source.state_dict(), bare)
    DetectionCheckpointer(target).load(str(bare))
    assert torch.equal(target.head.weight, source.head.weight)
    parts = tmp_path / "parts.pth"
    torch.save(source.backbone.state_dict(), parts)
    target = Detector()
    DetectionCheckpointer(target).load(f"{parts}?matching_heuristics=True")
    assert torch.equal(target.backbone.stem.conv1.weight, source.backbone.stem.conv1.weight)
    with pytest.raises(ValueError, match="Unsupported query.*wrong"):
        DetectionCheckpointer(target).load(f"{parts}?wrong=1")


def test_save_resume_and_what_is_reported(tmp_path, caplog):
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.head(torch.rand(2, 64)).sum().backward()
    optimizer.step()
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_0000004", iteration=4)
    assert checkpointer.has_checkpoint()

    other = Detector()
    fresh = torch.optim.AdamW(other.parameters(), lr=0.5)
    again = DetectionCheckpointer(other, str(tmp_path), optimizer=fresh)
    rest = again.resume_or_load("unused", resume=True)
    assert rest == {"iteration": 4}
    assert fresh.param_groups[0]["lr"] == 0.1
    assert torch.equal(other.head.weight, model.head.weight)
    assert DetectionCheckpointer(model).load("") == {}

    state = model.state_dict()
    state.pop("pixel_mean")
    state.pop("head.bias")
    torch.save({"model": {**state, "stranger": torch.zeros(1)}}, tmp_path / "other.pth")
    DetectionCheckpointer(other).load(str(tmp_path / "other.pth"))
    assert "head.bias" in caplog.text and "stranger" in caplog.text
    assert "pixel_mean" not in caplog.text


def test_periodic_checkpointer_keeps_the_newest(tmp_path):
    periodic = PeriodicCheckpointer(
        DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)), period=2, max_iter=8, max_to_keep=2
    )
    for iteration in range(8):
        periodic.step(iteration)
    files = {name for name in os.listdir(tmp_path) if name.endswith(".pth")}
    assert files == {"model_0000005.pth", "model_0000007.pth", "model_final.pth"}


@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize("rescale", [False, True])
def test_warmup_leads_from_its_factor_to_the_schedule(method, rescale):
    inner = CosineParamScheduler(1.0, 0.0)
    schedule = WarmupParamScheduler(inner, 0.1, 0.2, method, rescale)
    assert schedule(0.0) == pytest.approx(0.1)
    end = inner(0.0) if rescale else inner(0.2)
    assert schedule(0.1) == pytest.approx(0.1 if method == "constant" else (0.1 + end) / 2)
    assert schedule(0.6) == pytest.approx(inner(0.5) if rescale else inner(0.6))
    with pytest.raises(ValueError, match="Unknown warmup method: cubic"):
        WarmupParamScheduler(inner, 0.1, 0.2, "cubic")


def test_lr_multiplier_scales_every_group_and_resumes():
    def make():
        parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
        groups = [{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 0.1}]
        optimizer = torch.optim.SGD(groups)
        steps = MultiStepParamScheduler([1, 0.1], milestones=[3], num_updates=6)
        return optimizer, LRMultiplier(optimizer, steps, max_iter=6)

    optimizer, scheduler = make()
    seen = []
    for _ in range(5):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert np.allclose(seen, [[1, 0.1]] * 3 + [[0.1, 0.01]] * 2)
    other, resumed = make()
    assert set(scheduler.state_dict()) == {"base_lrs", "last_epoch"}
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.last_epoch == 5 and np.allclose(resumed.get_lr(), [0.1, 0.01])
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(other, lambda x: 1.0, max_iter=3)


def test_parameter_groups_follow_every_option():
    model = nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
            "frozen": FrozenBatchNorm2d(4),
            "head": nn.Linear(4, 2),
        }
    )
    model["tied"] = model["head"]
    model["head"].bias.requires_grad = False
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        weight_decay=0.5,
        weight_decay_norm=0.0,
        lr_factor_func=lambda name: 0.1 if "backbone" in name else 1.0,
        overrides={"weight": {"weight_decay": 0.25}},
    )
    settings = {
        name: {k: v for k, v in group.items() if k != "params"}
        for group in groups
        for member in group["params"]
        for name, parameter in model.named_parameters()
        if parameter is member
    }
    assert settings == {
        "backbone.0.weight": {"lr": 0.1, "weight_decay": 0.25},
        "backbone.0.bias": {"lr": 0.1, "weight_decay": 0.5},
        "backbone.1.weight": {"lr": 0.1, "weight_decay": 0.25},
        "backbone.1.bias": {"lr": 0.1, "weight_decay": 0.0},
        "head.weight": {"lr": 1.0, "weight_decay": 0.25},
    }
    assert len(groups) == 4, "equal settings share a group"
    for bad in ({"lr_factor_func": len}, {"bias_lr_factor": 2.0}):
        with pytest.raises(ValueError, match="base_lr"):
            get_default_optimizer_params(model, **bad)
    a = nn.Parameter(torch.zeros(1))
    merged = reduce_param_groups([{"params": [a], "lr": 1}, {"params": [a], "lr": 2}])
    assert merged == [{"lr": 2, "params": [a]}]
