"""A Swin's stages, window attention and MLPs in their fast forms give what they gave."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from detectron2.modeling.backbone.swin import SwinTransformer, WindowAttention
from torch import nn

from tokendetr.layers.cpu import optimize
from tokendetr.layers.cpu.swin import _Stage
from tokendetr.layers.windows import cut, pad_map, window_slots


def make_attention() -> WindowAttention:
    torch.manual_seed(0)
    attention = WindowAttention(24, (3, 3), 2, attn_drop=0.1).eval()
    nn.init.normal_(attention.relative_position_bias_table)
    return attention


def windows_and_mask(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.zeros(5, 9, 9).masked_fill_(torch.rand(5, 9, 9) < 0.3, -100.0)
    return torch.randn(images * 5, 9, 24), mask


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_window_attention_gives_the_same(images, masked, guard):
    attention = make_attention()
    x, mask = windows_and_mask(images)
    mask = mask if masked else None
    with guard():
        expected = attention(x, mask)
        with optimize(attention):
            torch.testing.assert_close(attention(x, mask), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(attention(x, mask), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_in_bfloat16_window_attention_is_as_exact_as_the_plain_one(masked):
    attention = make_attention()
    x, mask = windows_and_mask(2)
    mask = mask if masked else None
    exact = copy.deepcopy(attention).double()(x.double(), mask).detach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = attention(x, mask)
        with optimize(attention):
            fast = attention(x, mask)
    assert fast.dtype == plain.dtype
    error, before = ((each.double() - exact).norm() / exact.norm() for each in (fast, plain))
    assert error < max(1.5 * before, 5e-3)


def test_a_new_bias_counts_at_once():
    attention = make_attention()
    x, _ = windows_and_mask(1)
    with torch.no_grad(), optimize(attention):
        first = attention(x)
        attention.relative_position_bias_table.mul_(-1.0)
        second = attention(x)
    assert (first - second).abs().max() > 1e-2
    with torch.no_grad():
        torch.testing.assert_close(attention(x), second, rtol=1e-5, atol=1e-5)


def test_training_keeps_dropout_and_gradients():
    attention = make_attention().train()
    x, mask = windows_and_mask(1)
    with optimize(attention):
        attention(x, mask).sum().backward()
        with torch.no_grad():
            assert not torch.equal(attention(x, mask), attention(x, mask))
    assert attention.relative_position_bias_table.grad is not None


@pytest.mark.parametrize("name", ["attn.attn_drop", "attn.qkv", "mlp.fc1", "mlp.act", "mlp.drop"])
def test_hooks_inside_a_block_are_called(name):
    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 4}
    network = SwinTransformer(**sizes, out_indices=[0]).eval()
    block, x, calls = network.layers[0].blocks[1], torch.randn(1, 3, 30, 41), []
    with torch.no_grad():
        expected = network(x)["p0"]
        with optimize(network):
            torch.testing.assert_close(network(x)["p0"], expected, rtol=1e-5, atol=1e-5)
            block.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
            torch.testing.assert_close(network(x)["p0"], expected, rtol=1e-5, atol=1e-5)
    assert calls


@pytest.mark.parametrize("name", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_what_replaces_a_projection_later_counts(name):
    network, images = make_swin(), torch.randn(1, 3, 30, 41)
    block, (owner, part) = network.layers[0].blocks[1], name.split(".")
    adapted = nn.Sequential(block.get_submodule(name), nn.Tanh())  # has no weight of its own
    with torch.no_grad(), optimize(network):
        before = network(images)["p1"]
        setattr(block.get_submodule(owner), part, adapted)
        fast = network(images)["p1"]
    with torch.no_grad():
        torch.testing.assert_close(fast, network(images)["p1"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(fast, before, atol=1e-2)


def make_swin() -> SwinTransformer:
    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    network = SwinTransformer(**sizes, out_indices=[0, 1])
    for parameter in network.parameters():
        # Initial weights make attention uniform, and biases zero.
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("size", [(64, 96), (70, 91), (9, 40)])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_stages_give_the_same_with_and_without_padding(size, guard):
    network, images = make_swin(), torch.randn(2, 3, *size)
    with guard():
        expected = network(images)
        with optimize(network):
            assert isinstance(vars(network.layers[0])["forward"], _Stage)
            optimized = network(images)
        again = network(images)
    for name, map_BCHW in expected.items():
        torch.testing.assert_close(optimized[name], map_BCHW, rtol=1e-4, atol=1e-4)
        assert torch.equal(again[name], map_BCHW)


def test_in_bfloat16_stages_are_as_exact_as_the_plain_ones():
    network, images = make_swin(), torch.randn(2, 3, 70, 91)
    exact = copy.deepcopy(network).double()(images.double())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = network(images)
        with optimize(network):
            fast = network(images)
    for name, map_BCHW in exact.items():
        error, before = (
            (each[name].double() - map_BCHW).norm() / map_BCHW.norm() for each in (fast, plain)
        )
        assert error < 1.5 * before


def test_one_set_of_windows_serves_many_threads_and_sizes():
    network = make_swin()
    images = [torch.randn(1, 3, 20 + 9 * i, 70 - 7 * i) for i in range(6)]
    with torch.no_grad(), optimize(network):
        expected = [network(each)["p1"] for each in images]
        window_slots.cache_clear()

        def run(image):
            with torch.no_grad():
                return network(image)["p1"]

        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(run, images * 3))
    for one, other in zip(found, expected * 3, strict=True):
        assert torch.equal(one, other)


def test_a_stage_whose_class_changes_later_runs_the_new_class():
    network, images = make_swin(), torch.randn(1, 3, 40, 60)
    with torch.no_grad(), optimize(network):
        stage, calls = network.layers[1], []

        class Other(type(stage)):
            def forward(self, *inputs):
                calls.append(1)
                return super().forward(*inputs)

        network(images)
        stage.__class__ = Other
        network(images)
    assert calls == [1]


def test_stages_train_as_before():
    network, images = make_swin().train(), torch.randn(1, 3, 40, 60)
    with optimize(network):
        network(images)["p1"].sum().backward()
    table = network.layers[0].blocks[1].attn.relative_position_bias_table
    assert table.grad.abs().sum() > 0


def test_slots_pad_shift_and_cut_as_swin_does():
    x_BHWC = torch.randn(2, 5, 7, 3)
    slots = window_slots(2, (5, 7), (4, 4), (2, 2))
    moved_BHWC = pad_map(x_BHWC, (4, 4)).roll((-2, -2), (1, 2))
    windows_GTC = slots.gather(x_BHWC.flatten(0, 2))
    assert torch.equal(windows_GTC, cut(moved_BHWC, (4, 4)))
    assert torch.equal(slots.scatter(windows_GTC), x_BHWC.flatten(0, 2))
