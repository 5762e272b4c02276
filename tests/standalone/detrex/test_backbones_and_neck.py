"""Neck and backbones."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from detrex.layers import ShapeSpec
from detrex.modeling import ChannelMapper, ConvNeXt, TimmBackbone
from detrex.modeling.backbone import TorchvisionBackbone
from torch import nn


def neck(**kwargs):
    shapes = {"res3": ShapeSpec(channels=4), "res4": ShapeSpec(channels=6)}
    norm = nn.GroupNorm(2, 8)
    return ChannelMapper(shapes, ["res3", "res4"], 8, 1, norm_layer=norm, **kwargs)


def features():
    return {"res3": torch.randn(1, 4, 8, 10), "res4": torch.randn(1, 6, 4, 5)}


def test_neck_maps_features_and_adds_coarser_ones():
    module, inputs = neck(num_outs=4), features()
    outputs = module(inputs)
    assert [tuple(x.shape[1:]) for x in outputs] == [(8, 8, 10), (8, 4, 5), (8, 2, 3), (8, 1, 2)]
    torch.testing.assert_close(
        outputs[1], module.convs[1].norm(module.convs[1].conv(inputs["res4"]))
    )
    torch.testing.assert_close(outputs[2], module.extra_convs[0](inputs["res4"]))
    torch.testing.assert_close(outputs[3], module.extra_convs[1](outputs[2]))
    assert module.extra_convs[0].conv.kernel_size == (3, 3)


def test_neck_has_its_own_norm_per_level_under_upstreams_names():
    module = neck(num_outs=3)
    assert list(module.state_dict()) == [
        f"{part}.{kind}.{leaf}"
        for part in ("convs.0", "convs.1", "extra_convs.0")
        for kind in ("conv", "norm")
        for leaf in ("weight", "bias")
    ]
    assert module.convs[0].norm is not module.convs[1].norm


def test_neck_without_extra_levels_and_with_a_missing_feature():
    assert neck().extra_convs is None and len(neck()(features())) == 2
    with pytest.raises(KeyError, match=r"\['res5'\] are not among input_shapes"):
        ChannelMapper({"res3": ShapeSpec(channels=4)}, ["res5"], 8)


def test_convnext_features_and_frozen_stages():
    torch.manual_seed(0)
    backbone = ConvNeXt(
        depths=[1, 1, 2, 1],
        dims=[4, 6, 8, 10],
        drop_path_rate=0.1,
        out_indices=(1, 3),
        frozen_stages=2,
    )
    outputs = backbone(torch.randn(2, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "p1": (2, 6, 8, 12),
        "p3": (2, 10, 2, 3),
    }
    shapes = backbone.output_shape()
    assert (shapes["p3"].channels, shapes["p3"].stride) == (10, 32)
    outputs["p3"].sum().backward()
    assert backbone.stages[1][0].gamma.grad is None
    assert backbone.stages[2][0].gamma.grad is not None
    backbone.train()
    assert not backbone.stages[0].training and backbone.stages[2].training
    with pytest.raises(ValueError, match="frozen_stages=5"):
        ConvNeXt(frozen_stages=5)


def test_convnext_block_is_the_papers():
    torch.manual_seed(0)
    backbone = ConvNeXt(depths=[1, 1, 1, 1], dims=[4, 6, 8, 10], layer_scale_init_value=0.5)
    block, x = backbone.stages[0][0], torch.randn(1, 4, 9, 9)
    channels_last = block.dwconv(x).permute(0, 2, 3, 1)
    normed = torch.nn.functional.layer_norm(channels_last, (4,), eps=1e-6)
    out = block.pwconv2(torch.nn.functional.gelu(block.pwconv1(normed)))
    torch.testing.assert_close(block(x), x + 0.5 * out.permute(0, 3, 1, 2))
    assert set(block.state_dict()) == {
        "gamma",
        *(f"{n}.{k}" for n in ("dwconv", "norm", "pwconv1", "pwconv2") for k in ("weight", "bias")),
    }


@pytest.mark.parametrize(
    ("cls", "args", "package"),
    [(TimmBackbone, ("resnet18",), "timm"), (TorchvisionBackbone, (), "torchvision")],
)
def test_missing_packages_are_named(monkeypatch, cls, args, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        cls(*args)


class TinyTimmModel(nn.Module):
    """Two features, described as timm does."""

    feature_info = SimpleNamespace(channels=lambda: [3, 3], reduction=lambda: [2, 4])

    def forward(self, x):
        return [x[..., ::2, ::2], x[..., ::4, ::4]]


def test_timm_features_get_names_and_shapes(monkeypatch):
    asked = {}

    def create_model(**kwargs):
        if kwargs["model_name"] == "unknown":
            raise RuntimeError("Unknown model (unknown)")
        asked.update(kwargs)
        return TinyTimmModel()

    timm = ModuleType("timm")
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    backbone = TimmBackbone("tiny", out_indices=[1, 2])
    outputs = backbone(torch.zeros(1, 3, 8, 8))
    assert {name: x.shape[-1] for name, x in outputs.items()} == {"p1": 4, "p2": 2}
    assert backbone.output_shape()["p2"].stride == 4
    assert asked["out_indices"] == (1, 2) and asked["in_chans"] == 3
    with pytest.raises(TypeError, match="checkpoint_path"):
        TimmBackbone("tiny", pretrained="weights.pth")
    with pytest.raises(ValueError, match="timm cannot build 'unknown'.*Unknown model"):
        TimmBackbone("unknown")
