"""Linear layers through oneDNN equal PyTorch's own and leave the module unchanged."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tokendetr.layers.cpu import optimize


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(24, 65), nn.ReLU(), nn.Linear(65, 7, bias=False), Doubled(7, 3))
    return nn.Sequential(*layers).eval()


def operators(run) -> set[str]:
    with torch.profiler.profile() as profile:
        run()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 300, 24), (2, 0, 24)])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_results_equal_up_to_rounding(shape, guard):
    network, x = make_network(), torch.randn(shape)
    with guard():
        expected = network(x)
        with optimize(network):
            actual = network(x)
    exact = network.double()(x.double())
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-5)


def test_strided_input_gives_the_same():
    network, x = make_network(), torch.randn(24, 10, 6).permute(2, 1, 0)
    with torch.no_grad(), optimize(network):
        actual = network(x)
    torch.testing.assert_close(actual, network(x), rtol=1e-5, atol=1e-5)


def test_it_applies_only_without_gradients():
    network, x = make_network(), torch.randn(4, 24)
    with torch.no_grad(), optimize(network):
        inside = operators(lambda: network(x))
    assert "mkldnn::_linear_pointwise" in inside
    with optimize(network):
        network(x).sum().backward()
    assert network[0].weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu"), optimize(network):
        assert network(x).dtype == torch.bfloat16


def test_the_layers_are_restored():
    network = make_network()
    before = [set(vars(module)) for module in network.modules()]
    with torch.no_grad(), pytest.raises(RuntimeError), optimize(network):
        network(torch.zeros(4, 5))
    assert [set(vars(module)) for module in network.modules()] == before


def test_operation_counters_see_the_products():
    network, x = make_network(), torch.randn(4, 24)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, optimize(network):
        network(x)
    assert counter.get_total_flops() == 2 * 4 * (24 * 65 + 65 * 7 + 7 * 3)
