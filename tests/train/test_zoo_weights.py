"""Weights of the model zoos load: whole detectors, ResNets and Swins of ImageNet.

Files hold upstream's key names at small sizes; addresses go to a folder instead of the network.
"""

import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling.backbone import BasicStem, ResNet, SwinTransformer
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torch import nn

from tests.small_detectors import build
from tokendetr.checkpoint.backbone_weights import detectron2_resnet_name
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.errors import CheckpointMismatchError

RESNET_KEYS = [
    "stem.conv1.weight",
    "stem.conv1.norm.weight",
    "stem.conv1.norm.bias",
    "stem.conv1.norm.running_mean",
    "stem.conv1.norm.running_var",
    "res2.0.shortcut.weight",
    "res2.0.shortcut.norm.weight",
    "res2.0.conv1.weight",
    "res2.0.conv1.norm.running_var",
    "res2.0.conv2.weight",
    "res2.0.conv3.weight",
    "res2.0.conv3.norm.bias",
    "res2.1.conv1.weight",
    "res3.0.shortcut.weight",
    "res3.0.conv2.norm.weight",
]
"""Some of the names in detectron2://ImageNetPretrained/torchvision/R-50.pkl."""

TORCHVISION_NAMES = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_mean": "stem.conv1.norm.running_mean",
    "layer1.0.conv1.weight": "res2.0.conv1.weight",
    "layer1.0.bn3.bias": "res2.0.conv3.norm.bias",
    "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
    "layer1.0.downsample.1.running_var": "res2.0.shortcut.norm.running_var",
    "layer4.2.bn2.weight": "res5.2.conv2.norm.weight",
    "fc.weight": "stem.fc.weight",
}

SWIN_KEYS = [
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "patch_embed.norm.weight",
    "layers.0.blocks.0.norm1.weight",
    "layers.0.blocks.1.attn.relative_position_bias_table",
    "layers.0.blocks.1.attn.relative_position_index",
    "layers.0.blocks.0.attn.qkv.bias",
    "layers.0.blocks.0.attn.proj.weight",
    "layers.0.blocks.0.mlp.fc1.weight",
    "layers.0.downsample.reduction.weight",
    "layers.0.downsample.norm.weight",
    "layers.1.blocks.1.mlp.fc2.bias",
]
"""Some of the names in swin_tiny_patch4_window7_224.pth."""


class Detector(nn.Module):
    """A backbone and another module, as in detectors."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.transformer = nn.ModuleDict({"norm": nn.LayerNorm(16), "layers": nn.Linear(16, 16)})


def resnet() -> Detector:
    def stage(blocks: int, channels: int, width: int, stride: int) -> list:
        return ResNet.make_stage(
            BottleneckBlock,
            blocks,
            in_channels=channels,
            bottleneck_channels=width,
            out_channels=4 * width,
            stride_per_block=[stride, *[1] * (blocks - 1)],
            norm="FrozenBN",
        )

    stem = BasicStem(in_channels=3, out_channels=8, norm="FrozenBN")
    return Detector(ResNet(stem, [stage(2, 8, 4, 1), stage(1, 16, 8, 2)], out_features=["res3"]))


def swin() -> Detector:
    sizes = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    return Detector(SwinTransformer(pretrain_img_size=32, out_indices=(0, 1), **sizes))


def imagenet(model: Detector, seed: int = 5) -> dict[str, torch.Tensor]:
    """Return weights for the model's backbone under the backbone's own names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator)
        if value.is_floating_point()
        else value.clone()
        for name, value in model.backbone.state_dict().items()
    }


def torchvision_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same weights under torchvision's names of ResNets, with a head and counters."""
    renamed = {}
    for name, value in weights.items():
        parts = name.split(".")
        prefix = [] if parts[0] == "stem" else [f"layer{int(parts[0][3:]) - 1}", parts[1]]
        conv, *rest = parts[1:] if parts[0] == "stem" else parts[2:]
        if conv == "shortcut":
            conv = "downsample.1" if rest[0] == "norm" else "downsample.0"
        elif rest[0] == "norm":
            conv = conv.replace("conv", "bn")
            renamed[".".join([*prefix, conv, "num_batches_tracked"])] = torch.tensor(3)
        renamed[".".join([*prefix, conv, rest[-1]])] = value
    return {**renamed, "fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)}


class Folder(PathHandler):
    """A model zoo on the network, replaced by a folder."""

    def __init__(self, prefix: str, folder) -> None:
        super().__init__()
        self.prefix, self.folder, self.asked = prefix, folder, []

    def _get_supported_prefixes(self):
        return [self.prefix]

    def _get_local_path(self, path, force=False, **kwargs):
        self.asked.append(path)
        return str(self.folder / path[len(self.prefix) :])


@pytest.fixture
def model_zoo(tmp_path):
    """Resolve addresses detectron2://... to files below a folder."""
    handlers = dict(PathManager._path_handlers)
    folder = Folder("detectron2://", tmp_path)
    PathManager.register_handler(folder, allow_override=True)
    yield folder
    PathManager._path_handlers.clear()
    PathManager._path_handlers.update(handlers)


def assert_backbone(model: Detector, weights: dict[str, torch.Tensor]) -> None:
    for name, value in weights.items():
        loaded = model.backbone.state_dict()[name]
        torch.testing.assert_close(loaded, value.to(loaded.dtype), rtol=0, atol=0, msg=name)


def write_zoo_pickle(path, weights) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "model": {name: value.numpy() for name, value in weights.items()},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    path.write_bytes(pickle.dumps(content))


def test_the_resnet_of_a_zoo_address_loads(tmp_path, model_zoo, caplog):
    weights = imagenet(resnet())
    assert set(RESNET_KEYS) <= weights.keys()
    head = {"stem.fc.weight": torch.zeros(5, 32), "stem.fc.bias": torch.zeros(5)}
    address = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    write_zoo_pickle(tmp_path / "ImageNetPretrained/torchvision/R-50.pkl", {**weights, **head})
    model = resnet()
    with caplog.at_level(logging.INFO, logger="tokendetr"):
        report = load_weights(AtomicCheckpointer(model), address)
    assert model_zoo.asked[0] == address
    assert_backbone(model, weights)
    assert sorted(report.matched) == sorted(f"backbone.{name}" for name in weights)
    assert sorted(report.missing) == sorted(
        name for name in model.state_dict() if name.startswith("transformer.")
    )
    assert report.unexpected == ["stem.fc.bias", "stem.fc.weight"]
    for kind in ("matched", "missing in the file", "unexpected in the file", "wrong shape"):
        assert kind in report.table()


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_names_of_torchvision(name):
    assert detectron2_resnet_name(name) == TORCHVISION_NAMES[name]


@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
@pytest.mark.parametrize("make", [resnet, swin])
def test_a_bare_backbone_loads_with_and_without_heuristics(tmp_path, make, query):
    weights = imagenet(make())
    assert set(RESNET_KEYS if make is resnet else SWIN_KEYS) <= weights.keys()
    path = tmp_path / "backbone.pth"
    torch.save(weights, path)
    model = make()
    before = model.transformer["layers"].weight.clone()
    report = load_weights(AtomicCheckpointer(model), f"{path}{query}")
    assert_backbone(model, weights)
    assert torch.equal(model.transformer["layers"].weight, before)
    assert not report.unexpected
    assert not report.wrong_shape


def test_torchvisions_resnet_loads_under_its_own_names(tmp_path):
    weights = imagenet(resnet())
    torch.save(torchvision_names(weights), tmp_path / "resnet50.pth")
    model = resnet()
    report = load_weights(AtomicCheckpointer(model), str(tmp_path / "resnet50.pth"))
    assert_backbone(model, weights)
    assert report.unexpected == ["backbone.stem.fc.bias", "backbone.stem.fc.weight"]


def test_the_published_swin_loads_and_reports_what_it_has_more_and_less(tmp_path):
    """Its file has ``model``, one last norm and a head; detectors have a norm per level."""
    weights = imagenet(swin())
    levels = {name for name in weights if name.split(".")[0] in ("norm0", "norm1")}
    assert len(levels) == 4
    published = {name: value for name, value in weights.items() if name not in levels}
    extra = {
        "norm.weight": torch.ones(16),  # of the shape of the detector's own norms
        "head.weight": torch.zeros(5, 16),
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }
    torch.save({"model": {**published, **extra}}, tmp_path / "swin.pth")
    model = swin()
    torch.nn.init.constant_(model.transformer["norm"].weight, 0.25)
    report = load_weights(AtomicCheckpointer(model), str(tmp_path / "swin.pth"))
    assert_backbone(model, published)
    assert model.transformer["norm"].weight.eq(0.25).all(), "a norm elsewhere is not the Swin's"
    assert {f"backbone.{name}" for name in levels} < set(report.missing)
    assert report.unexpected == sorted(f"backbone.{name}" for name in extra)


def test_a_swin_of_another_window_names_what_does_not_fit(tmp_path):
    weights = imagenet(swin())
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    weights[name] = torch.zeros(9, 1)
    torch.save({"model": weights}, tmp_path / "swin.pth")
    report = load_weights(AtomicCheckpointer(swin()), str(tmp_path / "swin.pth"))
    assert report.wrong_shape == [(f"backbone.{name}", (9, 1), (49, 1))]
    assert f"backbone.{name}: [9, 1] in the file, [49, 1] in the model" in report.table()


@pytest.mark.parametrize("wrap", [True, False], ids=["model", "bare"])
@pytest.mark.parametrize("detector", ["dino", "deformable_two_stage"])
def test_whole_detectors_load_completely(tmp_path, model_zoo, detector, wrap):
    source = build(detector)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.125)
    state = source.state_dict()
    torch.save({"model": state, "iteration": 7} if wrap else state, tmp_path / "detector.pth")
    for address in (str(tmp_path / "detector.pth"), "detectron2://detector.pth"):
        model = build(detector)
        report = load_weights(AtomicCheckpointer(model), address)
        assert report.is_complete
        assert len(report.matched) == len({value.data_ptr() for value in state.values()})
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
def test_shared_tensors_and_other_shapes_are_reported_once_however_they_load(tmp_path, query):
    state = build("dino").state_dict()
    tensors = len({value.data_ptr() for value in state.values()})
    state = {name: value for name, value in state.items() if "decoder.class_embed" not in name}
    state["class_embed.0.weight"] = torch.zeros(9, state["class_embed.0.weight"].shape[1])
    del state["transformer.level_embeds"]
    torch.save({"model": state}, tmp_path / "detector.pth")
    path = f"{tmp_path / 'detector.pth'}{query}"
    report = load_weights(AtomicCheckpointer(build("dino")), path, strict=False)
    assert report.missing == ["transformer.level_embeds"] and not report.unexpected
    ((name, in_file, _),) = report.wrong_shape
    assert name.endswith("class_embed.0.weight") and in_file[0] == 9
    assert len(report.matched) == tensors - 2


def test_another_shape_is_found_behind_the_prefix_of_a_part(tmp_path):
    weights = imagenet(resnet())
    weights["stem.conv1.weight"] = torch.zeros(1, 3, 5, 5)
    torch.save({"model": weights}, tmp_path / "part.pth")
    path = f"{tmp_path / 'part.pth'}?matching_heuristics=True"
    report = load_weights(AtomicCheckpointer(resnet()), path)
    assert [entry[0] for entry in report.wrong_shape] == ["backbone.stem.conv1.weight"]
    assert "backbone.stem.conv1.weight" not in report.missing


def test_few_names_in_common_are_no_backbone(tmp_path):
    weights = dict(list(imagenet(resnet()).items())[:5])
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(CheckpointMismatchError, match=r"stem\.conv1\.weight"):
        load_weights(AtomicCheckpointer(resnet()), str(tmp_path / "part.pth"))


def test_arrays_that_are_no_numbers_are_refused_in_a_zoo_pickle(tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": {"stem.conv1.weight": np.array([object()])}}))
    with pytest.raises(ValueError, match=r"R-50\.pkl"):
        load_weights(AtomicCheckpointer(resnet()), str(path))
