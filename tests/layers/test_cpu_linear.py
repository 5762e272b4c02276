"""Linear layers through oneDNN equal PyTorch's own and leave the module unchanged."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tokendetr.layers.cpu import optimize


@pytest.fixture(autouse=True)
def _small_products_too(monkeypatch):
    monkeypatch.setattr("tokendetr.layers.cpu.linears.LEAST_PRODUCTS", 0)


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


def test_products_that_do_not_pay_are_pytorchs_own(monkeypatch):
    network, x = make_network(), torch.randn(4, 24)
    monkeypatch.setattr("tokendetr.layers.cpu.linears.LEAST_PRODUCTS", 4 * 24 * 65 + 1)
    with torch.no_grad(), optimize(network):
        assert "mkldnn::_linear_pointwise" not in operators(lambda: network(x))
        assert "mkldnn::_linear_pointwise" in operators(lambda: network(x.repeat(2, 1)))
        found = network(x)
    assert torch.equal(found, network(x))


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


def test_packed_weights_serve_any_number_of_rows():
    network = make_network()
    with torch.no_grad(), optimize(network):
        for rows in (1, 3, 700, 2):
            x = torch.randn(rows, 24)
            exact = copy.deepcopy(network).double()(x.double())
            torch.testing.assert_close(network(x).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_weights_that_change_while_optimized_count_at_once(guard):
    network, x = make_network(), torch.randn(4, 24)
    with optimize(network):
        with guard():
            first = network(x)
            assert torch.equal(network(x), first)
        with torch.no_grad():
            network[0].weight.mul_(2.0)
            network[2].weight = nn.Parameter(network[2].weight + 1.0)
        copied = copy.deepcopy(network)
        with guard():
            second = network(x)
        with torch.no_grad():
            copied[0].weight.zero_()
            assert torch.equal(network(x), second) and not torch.equal(copied(x), second)
    assert (first - second).abs().max() > 1e-2
    with torch.no_grad():
        torch.testing.assert_close(network(x), second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(inplace=True), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU()]
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_an_activation_behind_a_linear_layer_gives_the_same(activation, precision):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(24, 65), activation, nn.Dropout(), nn.Linear(65, 7)).eval()
    x = torch.randn(40, 24)
    with torch.no_grad(), torch.autocast("cpu", enabled=precision == torch.bfloat16):
        expected = network(x)
        with optimize(network):
            actual = network(x)
    assert actual.dtype == expected.dtype == precision
    bound = 1e-5 if precision == torch.float32 else 2e-2
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


def test_every_activation_of_a_sequence_is_inside_a_product():
    torch.manual_seed(0)
    layers = (nn.LayerNorm(24), nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 8), nn.GELU())
    network, x = nn.Sequential(*layers, nn.Linear(8, 3)).eval(), torch.randn(40, 24)
    with torch.no_grad():
        expected = network(x)
        with optimize(network):
            assert "aten::gelu" not in operators(lambda: network(x))
            torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
        assert "aten::gelu" in operators(lambda: network(x))


def test_hooks_between_a_linear_layer_and_its_activation_see_what_they_saw():
    network, x, seen = make_network(), torch.randn(4, 24), []
    with torch.no_grad(), optimize(network):
        assert not {"aten::relu", "aten::clamp_min"} & operators(lambda: network(x))
        network[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        network(x)
    assert len(seen) == 1 and (seen[0] < 0).any()
