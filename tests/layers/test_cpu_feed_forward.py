"""Residuals that are added inside products change results by rounding alone."""

import copy

import pytest
import torch
from detrex.layers import FFN, MLP
from torch import nn

from tokendetr.compat import torch_private
from tokendetr.layers.cpu import optimize
from tokendetr.layers.cpu.linears import linear_and_sum

LOW = torch.bfloat16


@pytest.fixture(autouse=True)
def _small_products_too(monkeypatch):
    monkeypatch.setattr("tokendetr.layers.cpu.linears.LEAST_PRODUCTS", 0)


def make_ffn(**options) -> FFN:
    torch.manual_seed(0)
    return FFN(embed_dim=24, feedforward_dim=65, output_dim=24, ffn_drop=0.1, **options).eval()


def operators(run) -> set[str]:
    with torch.profiler.profile() as profile:
        run()
    return {event.key for event in profile.key_averages()}


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("options", [{}, {"num_fcs": 3}, {"add_identity": False}])
@pytest.mark.parametrize("with_identity", [False, True])
@pytest.mark.parametrize("shape", [(24,), (2, 300, 24), (2, 0, 24)])
def test_a_feed_forward_network_gives_the_same(options, with_identity, shape):
    ffn, x = make_ffn(**options), torch.randn(shape)
    identity = torch.randn(shape) if with_identity else None
    with torch.no_grad():
        expected = ffn(x, identity)
        with optimize(ffn):
            found = ffn(x, identity)
        assert torch.equal(ffn(x, identity), expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_feed_forward_network_in_bfloat16_is_as_exact_as_the_plain_one():
    ffn, x = make_ffn(), torch.randn(500, 24)
    exact = copy.deepcopy(ffn).double()(x.double()).detach()
    with torch.no_grad(), torch.autocast("cpu", LOW):
        for given in (x, x.to(LOW)):
            plain = ffn(given)
            with optimize(ffn):
                fused = ffn(given)
            if torch_private.onednn_multiplies_bfloat16():
                assert fused.dtype == LOW
            assert relative_error(fused, exact) < max(1.2 * relative_error(plain, exact), 4e-3)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.enable_grad])
def test_a_head_gives_the_same_and_its_activations_are_inside_the_products(guard):
    torch.manual_seed(0)
    head, x = MLP(24, 32, 4, 3), torch.randn(2, 30, 24)
    with guard():
        expected = head(x)
        with optimize(head):
            torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-5)
            seen = operators(lambda: head(x))
    assert ("aten::relu" in seen) == (guard is torch.enable_grad)


def test_the_sum_is_no_pass_of_its_own():
    ffn, x = make_ffn(), torch.randn(500, 24)
    with torch.no_grad():
        assert "aten::add" in operators(lambda: ffn(x))
        with optimize(ffn):
            assert not {"aten::add", "aten::add_"} & operators(lambda: ffn(x))


def test_training_keeps_dropout_and_gradients():
    ffn, x = make_ffn().train(), torch.ones(500, 24)
    with optimize(ffn):
        ffn(x).sum().backward()
        with torch.no_grad():
            assert not torch.equal(ffn(x), ffn(x))
    assert ffn.layers[-2].weight.grad is not None


@pytest.mark.parametrize("name", ["layers", "layers.0", "layers.1", "layers.2"])
def test_hooks_inside_a_feed_forward_network_are_called(name):
    ffn, x, calls = make_ffn(), torch.randn(5, 24), []
    with torch.no_grad():
        expected = ffn(x)
        with optimize(ffn):
            ffn.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
            torch.testing.assert_close(ffn(x), expected, rtol=1e-5, atol=1e-5)
    assert calls == [1]


@pytest.mark.parametrize(
    "residual",
    [torch.ones(24), torch.ones(5, 24).double(), torch.ones(24, 5).T, torch.ones(3, 5, 24)],
)
def test_residuals_of_other_shapes_and_dtypes_are_added_as_usual(residual):
    layer, x = nn.Linear(24, 24), torch.randn(5, 24)
    with torch.no_grad():
        expected = layer(x) + residual
        with optimize(layer):
            found = linear_and_sum(layer, x, residual)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
