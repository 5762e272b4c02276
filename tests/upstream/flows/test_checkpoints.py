"""Checkpoints that detectron2, detrex and this project write for each other."""

import copy
import functools
import importlib
import sys
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from omegaconf import DictConfig

from tests.upstream.flows.programs import ROOT, checkout, detrexs_projects, start
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.config import load_config, target_name, zoo

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def detrexs_dino(tmp_path_factory):
    """detrex's ``projects.dino.modeling``, under a name of its own."""
    folder = detrexs_projects(tmp_path_factory.mktemp("path"))
    hidden = {
        name: sys.modules.pop(name)
        for name in list(sys.modules)
        if name.split(".")[0] == "projects"
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        modeling = importlib.import_module("projects.dino.modeling")
        yield modeling
    for name in [name for name in sys.modules if name.split(".")[0] == "projects"]:
        del sys.modules[name]
    sys.modules.update(hidden)


def of_detrex(model: DictConfig, modeling: object) -> DictConfig:
    """The same config with detrex's classes of DINO."""
    theirs = copy.deepcopy(model)
    nodes = [theirs, theirs.transformer, theirs.transformer.encoder, theirs.transformer.decoder]
    for node in [*nodes, theirs.criterion]:
        node["_target_"] = getattr(modeling, target_name(node["_target_"]).split(".")[-1])
    return theirs


def evaluate(config: DictConfig, model: torch.nn.Module) -> dict[str, float]:
    """AP on images of the shapes data set, in float64: rounding would choose between near ties."""
    test = config.dataloader.test
    records = instantiate(test.dataset)
    loader = build_detection_test_loader(records, mapper=instantiate(test.mapper))
    evaluator = COCOEvaluator("shapes_val", output_dir=None)
    exact = copy.deepcopy(model).double().eval()

    def detect(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return exact([{**record, "image": record["image"].double()} for record in batch])

    torch.set_default_dtype(torch.float64)  # detrex makes tensors of the default type
    try:
        with torch.no_grad():
            return dict(inference_on_dataset(detect, loader, evaluator)["bbox"])
    finally:
        torch.set_default_dtype(torch.float32)


def test_both_ways_with_equal_ap(shapes, detrexs_dino, tmp_path, monkeypatch):
    config = load_config("dino_shapes", trained=True)
    # detrex embeds places in 256 channels whatever a config says; this small detector has 96.
    module = importlib.import_module("projects.dino.modeling.dino_transformer")
    embed = functools.partial(module.get_sine_pos_embed, num_pos_feats=config.model.embed_dim // 2)
    monkeypatch.setattr(module, "get_sine_pos_embed", embed)
    config.model.device = "cpu"
    ours = instantiate(config.model)
    load_weights(AtomicCheckpointer(ours), config.train.init_checkpoint)
    theirs = instantiate(of_detrex(config.model, detrexs_dino))
    assert type(theirs).__module__ == "projects.dino.modeling.dino"
    AtomicCheckpointer(ours, str(tmp_path)).save("ours")
    DetectionCheckpointer(theirs).load(str(tmp_path / "ours.pth"))
    expected = evaluate(config, ours)
    found = evaluate(config, theirs)
    assert expected["AP"] > 5  # what is in the other images counts as missed
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)
    DetectionCheckpointer(theirs, str(tmp_path)).save("theirs")
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    report = load_weights(AtomicCheckpointer(ours), str(tmp_path / "theirs.pth"))
    assert not report.missing and not report.unexpected
    assert evaluate(config, ours) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_weights_of_torchvision_through_detectron2s_converter(tmp_path):
    """The ResNet-50 that every config starts from is a file that this converter wrote."""
    import torchvision

    torch.manual_seed(0)
    resnet = torchvision.models.resnet50(weights=None).eval()
    torch.save(resnet.state_dict(), tmp_path / "r50.pth")
    converter = checkout("detectron2") / "tools" / "convert-torchvision-to-d2.py"
    start([converter, tmp_path / "r50.pth", tmp_path / "R-50.pkl"], ROOT)
    config = zoo.get_config("dino_r50_4scale_12ep")
    config.model.device = "cpu"
    backbone = torch.nn.Module()
    backbone.backbone = instantiate(config.model.backbone)
    report = load_weights(AtomicCheckpointer(backbone), str(tmp_path / "R-50.pkl"), strict=False)
    assert not report.missing and len(report.matched) == len(backbone.state_dict()) == 265
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
        expected = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(stem))))
        found = backbone.backbone.eval()(images)["res5"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
