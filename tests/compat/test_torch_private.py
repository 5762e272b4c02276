"""Private names of PyTorch behave as the library assumes."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tokendetr.compat import torch_private
from tokendetr.compat.meta import meta_device


def test_onednns_product_is_a_linear_layer():
    layer, x = nn.Linear(5, 3), torch.randn(4, 5)
    product = torch_private.onednn_linear()
    if torch.backends.mkldnn.is_available():
        assert product is not None
        with torch.no_grad():
            y = product(x, layer.weight, layer.bias, "none", [], "")
            torch.testing.assert_close(y, layer(x))
            pack = torch_private.onednn_packed_linear_weight()
            packed = layer.weight if pack is None else pack(layer.weight, 4)
            y = product(x, packed, layer.bias, "relu", [], "")
            torch.testing.assert_close(y, layer(x).relu())
            y = product(x, packed, layer.bias, "gelu", [], "tanh")
            torch.testing.assert_close(y, F.gelu(layer(x), approximate="tanh"))
            other = torch.randn(4, 3)
            y = torch_private.onednn_linear_and_sum()(x, other, packed, layer.bias, "add")
            torch.testing.assert_close(y, layer(x) + other)


def test_onednns_convolutions_are_convolutions():
    if not torch.backends.mkldnn.is_available():
        return
    x, other = torch.randn(1, 4, 5, 7), torch.randn(1, 6, 3, 4)
    weight, bias = torch.randn(6, 2, 3, 3), torch.randn(6)
    settings = ((1, 1), (2, 2), (1, 1), 2)
    expected = F.conv2d(x, weight, bias, stride=2, padding=1, groups=2)
    found = torch_private.onednn_convolution()(x, weight, bias, *settings, "relu", [], "")
    torch.testing.assert_close(found, expected.relu())
    sums = torch_private.onednn_convolution_and_sum()
    found = sums(x, other, weight, bias, *settings, "add", 1.0, "relu", [], "")
    torch.testing.assert_close(found, (expected + other).relu())
    pack = torch_private.onednn_packed_convolution_weight()
    if pack is not None:
        packed = pack(weight, *settings, [1, 4, 50, 70])  # another size than the input's
        found = torch_private.onednn_convolution()(x, packed, bias, *settings, "relu", [], "")
        torch.testing.assert_close(found, expected.relu())
        found = sums(x, other, packed, bias, *settings, "add", 1.0, "relu", [], "")
    onto = torch_private.onednn_convolution_onto()
    if onto is not None:
        onto(other, x, weight, bias, *settings, "add", 1.0, "relu", [], "")
        torch.testing.assert_close(other, found)
    assert isinstance(torch_private.onednn_multiplies_bfloat16(), bool)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_transforms_of_functions_are_seen(transform):
    seen = []

    def double(x):
        seen.append(torch_private.function_is_transformed())
        return 2 * x

    transform(double)(torch.tensor(1.0) if transform is torch.func.grad else torch.ones(3))
    assert seen == [True] and not torch_private.function_is_transformed()


def test_hooks_are_seen():
    module = nn.Identity()
    assert not torch_private.has_forward_hooks(module)
    handle = module.register_forward_pre_hook(lambda *_: None)
    assert torch_private.has_forward_hooks(module)
    handle.remove()
    assert not torch_private.has_forward_hooks(module)


def test_dispatch_modes_are_seen_and_left():
    class Watching(torch_private.TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    assert torch_private.current_dispatch_mode() is None
    with Watching() as mode:
        assert torch_private.current_dispatch_mode() is mode
        torch.zeros(2)
        seen = mode.calls
        with torch_private.disable_current_modes():
            assert torch_private.current_dispatch_mode() is None
            torch.zeros(2)
        assert seen == mode.calls > 0


def test_trees_and_fake_tensors():
    doubled = torch_private.tree_map_only(int, lambda value: 2 * value, {"a": [1, "b"]})
    assert doubled == {"a": [2, "b"]}
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert isinstance(torch.zeros(1), torch_private.FakeTensor)


def test_models_are_built_without_memory_though_they_read_rates():
    with meta_device():
        layer, rates = nn.Linear(4, 4), torch.linspace(0, 0.3, 4)
    assert layer.weight.is_meta and [round(rate.item(), 3) for rate in rates] == [0, 0.1, 0.2, 0.3]


def test_the_onnx_exporter_warns_of_everything_but_torchvision(monkeypatch, caplog):
    pytest.importorskip("onnxscript")
    from torch.onnx._internal.exporter import _registration

    monkeypatch.setattr(_registration.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)

    def said() -> list[str]:
        caplog.clear()
        _registration.ONNXRegistry.from_torchlib()
        _registration.logger.warning("something else")
        return [record.getMessage() for record in caplog.records]

    assert any("torchvision" in text for text in said()), "the exporter has another warning now"
    with torch_private.without_torchvision_warnings():
        assert said() == ["something else"]
