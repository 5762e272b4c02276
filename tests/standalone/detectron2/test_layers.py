"""Norms, convolution, suppression and stochastic depth."""

import sys

import pytest
import torch
from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    FrozenBatchNorm2d,
    batched_nms,
    cat,
    cross_entropy,
    get_norm,
    nms,
    nonzero_tuple,
)
from detectron2.structures import Boxes, pairwise_iou
from torch import nn


def trained_norm(channels=6):
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(channels))
        norm.running_var.copy_(torch.rand(channels) + 0.5)
    return norm.eval()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_norm_equals_evaluated_norm(requires_grad):
    norm = trained_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    x = torch.randn(2, 6, 5, 4, requires_grad=requires_grad)
    assert isinstance(frozen, FrozenBatchNorm2d)
    assert torch.allclose(frozen(x), norm(x), atol=1e-5)
    assert not list(frozen.parameters())
    frozen.train()
    assert torch.allclose(frozen(x), norm(x), atol=1e-5)
    if requires_grad:
        ours = torch.autograd.grad(frozen(x).square().sum(), x)[0]
        theirs = torch.autograd.grad(norm(x).square().sum(), x)[0]
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_frozen_norm_starts_as_identity_with_the_upstream_keys():
    frozen = FrozenBatchNorm2d(4)
    x = torch.randn(1, 4, 3, 3)
    assert torch.allclose(frozen(x), x, atol=1e-6)
    assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert repr(frozen) == "FrozenBatchNorm2d(num_features=4, eps=1e-05)"


def test_frozen_norm_loads_affine_weights_alone():
    frozen = FrozenBatchNorm2d(2)
    frozen.load_state_dict({"weight": torch.tensor([2.0, 3.0]), "bias": torch.tensor([1.0, 0.0])})
    x = torch.ones(1, 2, 1, 1)
    assert frozen(x).flatten().tolist() == pytest.approx([3.0, 3.0], abs=1e-4)


def test_norm_conversion_goes_both_ways_inside_models():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), trained_norm(), nn.Sequential(trained_norm())).eval()
    x = torch.randn(2, 3, 4, 4)
    before = model(x)
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(model) is model
    assert isinstance(model[2][0], FrozenBatchNorm2d)
    assert torch.allclose(model(x), before, atol=1e-5)
    back = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(model).eval()
    assert isinstance(back[1], nn.BatchNorm2d) and "1.num_batches_tracked" in back.state_dict()
    assert torch.allclose(back(x), before, atol=1e-5)


def test_get_norm_by_name_and_callable():
    kinds = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d, "GN": nn.GroupNorm}
    for name, kind in kinds.items():
        assert isinstance(get_norm(name, 64), kind)
    assert isinstance(get_norm("SyncBN", 64), nn.SyncBatchNorm)
    assert get_norm("", 8) is None and get_norm(None, 8) is None
    assert isinstance(get_norm(lambda c: nn.Identity(), 8), nn.Identity)
    x = torch.randn(2, 8, 3, 5)
    layer = get_norm("LN", 8)
    expected = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (8,), eps=1e-6).permute(0, 3, 1, 2)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    with pytest.raises(KeyError, match="Unknown norm 'XN'.*BN"):
        get_norm("XN", 8)


def test_conv_applies_norm_then_activation():
    norm, x = trained_norm(4), torch.randn(2, 3, 7, 7)
    conv = Conv2d(3, 4, 3, padding=1, bias=False, norm=norm, activation=torch.relu)
    plain = nn.functional.conv2d(x, conv.weight, padding=1)
    assert torch.equal(conv(x), torch.relu(norm(plain)))
    assert "norm.weight" in conv.state_dict()


def test_block_freezes_itself():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 4, 2)
            self.conv = Conv2d(3, 4, 1, norm=nn.BatchNorm2d(4))

    block = Block()
    assert block.freeze() is block
    assert not any(p.requires_grad for p in block.parameters())
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)


def greedy(boxes, scores, groups, threshold):
    """Apply the definition, one box at a time."""
    iou = pairwise_iou(Boxes(boxes), Boxes(boxes))
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(groups[i] != groups[j] or iou[i, j] <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("count", [0, 1, 40, 300])
@pytest.mark.parametrize("block", [16, 1024])
def test_nms_is_the_greedy_algorithm(count, block, monkeypatch):
    monkeypatch.setattr(sys.modules["detectron2.layers.nms"], "_BLOCK", block)
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 20 + torch.rand(count, 2, generator=generator) * 20], 1)
    scores = (torch.rand(count, generator=generator) * 20).round()  # with ties
    groups = torch.randint(0, 3, (count,), generator=generator)
    for threshold in (0.3, 0.7):
        kept = batched_nms(boxes, scores, groups, threshold).tolist()
        assert kept == greedy(boxes, scores, groups, threshold)
        same = nms(boxes, scores, threshold).tolist()
        assert same == greedy(boxes, scores, torch.zeros_like(groups), threshold)


@pytest.mark.stand_ins
def test_drop_path_keeps_the_mean_and_whole_samples():
    from detectron2.layers._drop_path import DropPath

    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(4000, 3)
    out = layer(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(out[:, 0], out[:, 2])
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(layer.eval()(x), x)


def test_small_helpers():
    x = torch.rand(2, 3)
    assert cat([x]) is x and cat([x, x], dim=1).shape == (2, 6)
    assert [t.tolist() for t in nonzero_tuple(torch.eye(2))] == [[0, 1], [0, 1]]
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
