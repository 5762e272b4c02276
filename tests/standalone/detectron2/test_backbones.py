"""ResNet, Swin, FPN and post-processing: keys, sizes, values against independent computations."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import FPN, ResNet, SwinTransformer, build_model, detector_postprocess
from detectron2.modeling.backbone import BasicStem, BottleneckBlock
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from tokendetr.compat.meta import meta_device

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PREFIX = "backbone."


def golden_backbone(name):
    keys = json.loads((GOLDEN / f"{name}.json").read_text())["state_dict"]
    return {k[len(PREFIX) :]: shape for k, shape in keys.items() if k.startswith(PREFIX)}


def keys_and_shapes(model):
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def resnet(depth=50, **kwargs):
    stages = ResNet.make_default_stages(depth, norm="FrozenBN")
    return ResNet(BasicStem(norm="FrozenBN"), stages, **kwargs)


def test_resnet50_has_upstreams_keys():
    model = resnet(out_features=["res3", "res4", "res5"], freeze_at=1)
    golden = golden_backbone("dino_r50_4scale")
    assert keys_and_shapes(model) == golden
    assert list(model.state_dict()) == list(golden)


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.69), (50, 25.56), (101, 44.55)])
def test_resnet_parameter_counts(depth, millions):
    with meta_device():
        stages = ResNet.make_default_stages(depth, norm="BN")
        model = ResNet(BasicStem(norm="BN"), stages, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_resnet_strides_and_channels():
    model = resnet(out_features=["stem", "res2", "res5"]).eval()
    with torch.no_grad():
        out = model(torch.rand(1, 3, 64, 96))
    assert list(out) == ["stem", "res2", "res5"]
    for name, shape in model.output_shape().items():
        assert out[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    # stages that are not requested are not built
    assert not hasattr(resnet(out_features=["res3"]), "res4")
    with pytest.raises(AssertionError, match="res9"):
        resnet(out_features=["res5", "res9"])


def test_bottleneck_follows_its_definition():
    block = BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, norm="FrozenBN")
    x = torch.randn(1, 8, 6, 6)
    f = nn.functional
    y = f.conv2d(x, block.conv1.weight).relu()
    y = f.conv2d(y, block.conv2.weight, stride=2, padding=1).relu()
    y = f.conv2d(y, block.conv3.weight)
    expected = (y + f.conv2d(x, block.shortcut.weight, stride=2)).relu()
    assert torch.allclose(block(x.clone()), expected, atol=1e-4)
    early = BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, stride_in_1x1=True)
    assert (early.conv1.stride, early.conv2.stride) == ((2, 2), (1, 1))


def test_freeze_stops_gradients_of_the_first_stages():
    stages = ResNet.make_default_stages(18, norm="BN")
    model = ResNet(BasicStem(norm="BN"), stages, out_features=["res5"], freeze_at=2)
    assert isinstance(model.stem.conv1.norm, FrozenBatchNorm2d)
    assert isinstance(model.res2[0].conv1.norm, FrozenBatchNorm2d)
    assert isinstance(model.res3[0].conv1.norm, nn.BatchNorm2d)
    model(torch.rand(2, 3, 32, 32))["res5"].sum().backward()
    with_gradient = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"res3", "res4", "res5"}


def test_make_stage_distributes_values_per_block():
    blocks = ResNet.make_stage(
        BottleneckBlock, 3, in_channels=8, out_channels=16, bottleneck_channels=4, norm="",
        stride_per_block=[2, 1, 1], dilation_per_block=[1, 2, 2],
    )  # fmt: skip
    assert [b.stride for b in blocks] == [2, 1, 1]
    assert [b.conv2.dilation[0] for b in blocks] == [1, 2, 2]
    with pytest.raises(AssertionError, match="stride_per_block"):
        ResNet.make_stage(BottleneckBlock, 2, in_channels=8, out_channels=16, stride_per_block=[1])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dino_swin_tiny_224_4scale", {}),
        (
            "dino_swin_large_384_4scale",
            {
                "pretrain_img_size": 384,
                "embed_dim": 192,
                "depths": (2, 2, 18, 2),
                "num_heads": (6, 12, 24, 48),
                "window_size": 12,
            },
        ),
    ],
)
def test_swin_has_upstreams_keys(name, arguments):
    with meta_device():
        model = SwinTransformer(out_indices=(1, 2, 3), **arguments)
    golden = golden_backbone(name)
    assert keys_and_shapes(model) == golden
    assert list(model.state_dict()) == list(golden)


def small_swin(**kwargs):
    torch.manual_seed(0)
    arguments = {"embed_dim": 12, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4}
    return SwinTransformer(**{**arguments, "out_indices": (0, 1), **kwargs}).eval()


def attention_by_hand(block, x_HWC, height, width):
    """Compute the shifted window attention of one block, token by token."""
    size, shift, attn = block.window_size, block.shift_size, block.attn
    tall, wide = height + -height % size, width + -width % size
    padded = x_HWC.new_zeros(tall, wide, x_HWC.shape[2])
    padded[:height, :width] = x_HWC
    heads, channels = attn.num_heads, x_HWC.shape[2]
    out = torch.zeros_like(padded)

    def window_and_region(position, length):
        moved = (position - shift) % length
        region = 0 if moved < length - size else 1 if moved < length - shift else 2
        return moved // size, moved % size, region if shift else 0

    cells = {}
    for y in range(tall):
        for x in range(wide):
            wy, iy, ry = window_and_region(y, tall)
            wx, ix, rx = window_and_region(x, wide)
            cells.setdefault((wy, wx), []).append((y, x, iy, ix, (ry, rx)))
    for members in cells.values():
        tokens = torch.stack([padded[y, x] for y, x, *_ in members])
        qkv = attn.qkv(tokens).view(len(members), 3, heads, channels // heads)
        for a, (y, x, iy, ix, region) in enumerate(members):
            mixed = []
            for head in range(heads):
                logits = []
                for b, (_, _, jy, jx, other) in enumerate(members):
                    index = (iy - jy + size - 1) * (2 * size - 1) + ix - jx + size - 1
                    logit = (qkv[a, 0, head] * attn.scale) @ qkv[b, 1, head]
                    logit = logit + attn.relative_position_bias_table[index, head]
                    logits.append(logit + (0.0 if region == other else -100.0))
                weights = torch.stack(logits).softmax(0)
                mixed.append(weights @ qkv[:, 2, head])
            out[y, x] = attn.proj(torch.cat(mixed))
    return out[:height, :width]


@pytest.mark.parametrize("index", [0, 1])
def test_swin_block_matches_attention_by_hand(index):
    block = small_swin().layers[0].blocks[index]
    height, width = 6, 7
    x = torch.randn(1, height * width, 12)
    from detectron2.modeling.backbone.swin import _shift_mask

    mask = _shift_mask(8, 8, 4, 2, x.device)
    with torch.no_grad():
        nn.init.normal_(block.attn.relative_position_bias_table)
        ours = block(x, height, width, mask)
        attended = attention_by_hand(
            block, block.norm1(x).view(height, width, 12), height, width
        ).reshape(1, -1, 12)
        expected = x + attended
        expected = expected + block.mlp(block.norm2(expected))
    assert torch.allclose(ours, expected, atol=1e-5)


def test_swin_sizes_gradients_and_options():
    model = small_swin(ape=True, pretrain_img_size=32, use_checkpoint=True).train()
    assert model.size_divisibility == 32
    out = model(torch.rand(1, 3, 37, 50))
    assert {name: tuple(t.shape) for name, t in out.items()} == {
        "p0": (1, 12, 10, 13),
        "p1": (1, 24, 5, 7),
    }
    sum(t.square().sum() for t in out.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    frozen = small_swin(frozen_stages=2)
    trainable = {n.split(".")[1] for n, p in frozen.named_parameters() if p.requires_grad}
    assert "proj" not in trainable
    assert not any(p.requires_grad for p in frozen.layers[0].parameters())
    assert all(p.requires_grad for p in frozen.layers[1].parameters())


def test_fpn_levels_and_top_down_sum():
    bottom = resnet(18, out_features=["res2", "res3"]).eval()
    model = FPN(bottom, ["res2", "res3"], 8).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        out, features = model(x), bottom(x)
        top = model.fpn_lateral3(features["res3"])
        fine = model.fpn_lateral2(features["res2"])
        fine = fine + nn.functional.interpolate(top, scale_factor=2)
        assert torch.allclose(out["p2"], model.fpn_output2(fine), atol=1e-5)
        assert torch.allclose(out["p3"], model.fpn_output3(top), atol=1e-5)
    assert {n: s.stride for n, s in model.output_shape().items()} == {"p2": 4, "p3": 8}
    whole = resnet(18, out_features=["res2", "res3", "res4", "res5"])
    model = FPN(whole, ["res2", "res3", "res4", "res5"], 8, top_block=LastLevelMaxPool())
    assert list(model(torch.rand(1, 3, 64, 64))) == ["p2", "p3", "p4", "p5", "p6"]


def test_postprocess_scales_clips_and_drops_empty_boxes():
    boxes = Boxes([[10, 10, 200, 50], [120, 10, 130, 20], [0, 0, 10, 10]])
    masks = torch.zeros(3, 50, 100)
    masks[0, 10:50, 10:] = 0.9
    results = Instances(
        (50, 100), pred_boxes=boxes, scores=torch.tensor([3.0, 2, 1]), pred_masks=masks
    )
    out = detector_postprocess(results, 100, 300)
    assert out.image_size == (100, 300)
    assert out.pred_boxes.tensor.tolist() == [[30, 20, 300, 100], [0, 0, 30, 20]]
    assert out.scores.tolist() == [3, 1]
    assert out.pred_masks.shape == (2, 100, 300)
    assert out.pred_masks[0].sum().item() == pytest.approx(270 * 80, rel=0.02)
    assert results.pred_boxes.tensor[0].tolist() == [10, 10, 200, 50], (
        "the argument must not change"
    )


def test_postprocess_pastes_box_masks():
    results = Instances(
        (20, 20), pred_boxes=Boxes([[4, 6, 12, 16]]), pred_masks=torch.ones(1, 1, 28, 28)
    )
    mask = detector_postprocess(results, 20, 20).pred_masks[0]
    assert mask.sum().item() == 8 * 10
    assert mask[6:16, 4:12].all()


def test_build_model_takes_lazy_configs_and_explains_others():
    cfg = OmegaConf.create(
        {"model": L(nn.Linear)(in_features=2, out_features=3), "train": {"device": "cpu"}},
        flags={"allow_objects": True},
    )
    assert isinstance(build_model(cfg), nn.Linear)
    assert isinstance(build_model(cfg.model), nn.Linear)

    class Yacs:
        MODEL = "anything"

    with pytest.raises(ValueError, match="yacs config.*LazyConfig.load"):
        build_model(Yacs())
    with pytest.raises(ValueError, match="'model' node"):
        build_model(OmegaConf.create({"a": 1}))
