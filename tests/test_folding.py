"""Frozen norms inside convolutions give what they give by themselves, and leave no trace."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn import functional as F

from tokendetr.layers.cpu import optimize


def make_network(norm: str = "FrozenBN") -> nn.Sequential:
    """Convolutions with norms whose statistics are far from the identity."""
    torch.manual_seed(0)

    def norm_of(channels: int) -> nn.Module:
        module = FrozenBatchNorm2d(channels) if norm == "FrozenBN" else nn.BatchNorm2d(channels)
        for buffer in (module.weight, module.bias, module.running_mean):
            nn.init.normal_(buffer)
        nn.init.uniform_(module.running_var, 0.1, 2.0)
        return module

    return nn.Sequential(
        Conv2d(3, 8, 3, stride=2, padding=1, bias=False, norm=norm_of(8), activation=F.relu),
        Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, norm=norm_of(8)),
        Conv2d(8, 4, 1, norm=None),
    ).eval()


def norm_calls(network: nn.Module, run) -> int:
    """Count how often ``F.batch_norm`` runs."""
    with torch.profiler.profile() as profile:
        run()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::batch_norm")


@pytest.mark.parametrize("last", [False, True])
def test_folded_norms_give_the_same_without_running(last):
    network, x = make_network(), torch.randn(2, 3, 17, 12)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    with torch.no_grad():
        expected = network(x)
        with optimize(network):
            torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
            assert norm_calls(network, lambda: network(x)) == 0
        assert norm_calls(network, lambda: network(x)) == 2
        assert torch.equal(network(x), expected)


def test_an_error_inside_leaves_the_network_as_it_was():
    network = make_network()
    before = {name: dict(vars(module)) for name, module in network.named_modules()}
    with torch.no_grad(), pytest.raises(RuntimeError), optimize(network):
        network(torch.zeros(1, 5, 8, 8))
    assert {name: vars(module).keys() for name, module in network.named_modules()} == {
        name: attributes.keys() for name, attributes in before.items()
    }
    copy.deepcopy(network)


def test_new_weights_count_at_once():
    network, x = make_network(), torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        with optimize(network):
            first = network(x)
        network[0].norm.running_mean.add_(1.0)
        expected = network(x)
        with optimize(network):
            torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
        assert (first - expected).abs().max() > 1e-2


def test_gradients_other_norms_and_hooks_keep_the_plain_way():
    network, x = make_network(), torch.randn(1, 3, 9, 9)
    expected = network(x)
    with optimize(network):
        assert torch.equal(network(x), expected)
        assert network(x).requires_grad
    trained = make_network(norm="BN")
    with torch.no_grad(), optimize(trained):
        assert norm_calls(trained, lambda: trained(x)) == 2
    seen = []
    network[0].norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad(), optimize(network):
        assert norm_calls(network, lambda: network(x)) == 1
    assert len(seen) == 1
