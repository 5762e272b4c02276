"""A Swin's window attention and MLPs in their fast forms give what they gave."""

import copy

import pytest
import torch
from detectron2.modeling.backbone.swin import SwinTransformer, WindowAttention
from torch import nn

from tokendetr.layers.cpu import optimize


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
