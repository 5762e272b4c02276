"""Frozen norms folded into convolutions change no result and leave the module unchanged."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tokendetr.compat import torch_private
from tokendetr.layers.cpu import optimize


def make_network(norm: str = "FrozenBN") -> nn.Sequential:
    """Return convolutions with norms whose statistics are far from the identity."""
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
    """Count the calls of ``F.batch_norm``."""
    with torch.profiler.profile() as profile:
        run()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::batch_norm")


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("last", [False, True])
def test_folded_norms_give_the_same_without_running(last, norm):
    network, x = make_network(norm), torch.randn(2, 3, 17, 12)
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


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_weights_that_change_while_optimized_count_at_once(guard):
    network, x = make_network(), torch.randn(1, 3, 9, 9)
    other = make_network("BN").state_dict()
    with optimize(network):
        with guard():
            first = network(x)
            assert torch.equal(network(x), first)
        with torch.no_grad():
            network[1].weight.mul_(2.0)
            network[0].norm.running_var = network[0].norm.running_var + 1.0
        with guard():
            second = network(x)
        network.load_state_dict(other, strict=False)
        with guard():
            third = network(x)
        copied = copy.deepcopy(network)
        with torch.no_grad():
            copied[0].weight.zero_()
            fourth = network(x)
            assert not torch.equal(copied(x), fourth)
    assert (first - second).abs().max() > 1e-2
    assert torch.equal(third, fourth)
    with torch.no_grad():
        torch.testing.assert_close(network(x), third, rtol=1e-5, atol=1e-5)


def test_gradients_other_norms_and_hooks_keep_the_plain_path():
    network, x = make_network(), torch.randn(1, 3, 9, 9)
    expected = network(x)
    with optimize(network):
        assert torch.equal(network(x), expected)
        assert network(x).requires_grad
    trained = make_network(norm="BN").train()  # its statistics are those of each input
    with torch.no_grad(), optimize(trained):
        assert norm_calls(trained, lambda: trained(x)) == 2
    seen = []
    network[0].norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad(), optimize(network):
        assert norm_calls(network, lambda: network(x)) == 1
    assert len(seen) == 1


BLOCKS = {
    "stem": lambda: BasicStem(3, 6, norm="FrozenBN"),
    "basic": lambda: BasicBlock(6, 6, norm="FrozenBN"),
    "basic with a shortcut": lambda: BasicBlock(6, 10, stride=2, norm="BN"),
    "bottleneck": lambda: BottleneckBlock(16, 16, bottleneck_channels=4, norm="FrozenBN"),
    "bottleneck with a shortcut": lambda: BottleneckBlock(
        6, 16, bottleneck_channels=8, stride=2, num_groups=2, dilation=2, norm="FrozenBN"
    ),
}


def make_block(name: str) -> nn.Module:
    torch.manual_seed(0)
    block = BLOCKS[name]().eval()
    for module in block.modules():
        if hasattr(module, "running_var"):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return block


@pytest.mark.parametrize("size", [(2, 9, 14), (1, 1, 1), (1, 2, 1), (1, 40, 33)])
@pytest.mark.parametrize("name", BLOCKS)
def test_residual_blocks_give_the_same_and_keep_their_input(name, size):
    block = make_block(name)
    x = torch.randn(size[0], block.in_channels, *size[1:])
    with torch.no_grad():
        expected, given = block(x), x.clone()
        with optimize(block):
            torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
            last = x.contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(block(last), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(x, given) and torch.equal(last, given)
        assert norm_calls(block, lambda: block(x)) == len(list(block.children()))


@pytest.mark.parametrize("size", [(2, 9, 14), (1, 1, 1), (1, 40, 33)])
@pytest.mark.parametrize("name", BLOCKS)
def test_in_bfloat16_the_folded_block_is_as_exact_as_the_plain_one(name, size):
    block = make_block(name)
    x = torch.randn(size[0], block.in_channels, *size[1:])
    with torch.no_grad():
        exact = block.double()(x.double())
        block.float()
        with torch.autocast("cpu", torch.bfloat16):
            plain = block(x)
            with optimize(block):
                folded = block(x)
                if torch_private.onednn_multiplies_bfloat16():
                    assert norm_calls(block, lambda: block(x)) == 0
    assert folded.dtype == plain.dtype == torch.bfloat16
    scale = float(exact.abs().max())
    assert float((folded - exact).abs().max()) <= 1.5 * float((plain - exact).abs().max()) + (
        2**-7 * scale
    )


def test_torch_function_modes_see_the_convolutions():
    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            Counting.calls += function is F.conv2d or function is torch.conv2d
            return function(*args, **(kwargs or {}))

    block = make_block("bottleneck")
    with torch.no_grad(), optimize(block), Counting():
        block(torch.randn(1, 16, 8, 8))
    assert Counting.calls == 3


@pytest.mark.parametrize(("name", "conv"), [("stem", "conv1"), ("bottleneck", "conv2")])
def test_hooks_inside_a_block_are_called(name, conv):
    block, seen = make_block(name), []
    hook = block.get_submodule(conv).register_forward_hook
    hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad(), optimize(block):
        block(torch.randn(1, block.in_channels, 8, 8))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("name", "conv"),
    [("stem", "conv1"), ("basic", "conv2"), ("bottleneck with a shortcut", "shortcut")],
)
def test_what_replaces_a_convolution_later_counts(name, conv):
    block = make_block(name)
    x = torch.randn(1, block.in_channels, 8, 8)
    with torch.no_grad(), optimize(block):
        block(x)
        setattr(block, conv, nn.Sequential(block.get_submodule(conv), nn.Tanh()))
        torch.testing.assert_close(block(x), type(block).forward(block, x))


def test_convolutions_without_a_norm_and_other_paddings_are_unchanged():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.Conv2d(8, 8, 3, padding="same", groups=2),
        nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"),
    )
    x = torch.randn(2, 3, 11, 7)
    with torch.no_grad():
        expected = network(x)
        with optimize(network):
            torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(network(x[0]), expected[0], rtol=1e-5, atol=1e-5)
            assert network(x[:0]).shape == (0, 4, 11, 7)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", ["bottleneck", "bottleneck with a shortcut"])
def test_stages_give_the_same_and_keep_what_others_see(first, precision):
    others = [make_block("bottleneck") for _ in range(3)]
    stage = nn.Sequential(make_block(first), *others).eval()
    x = torch.randn(2, stage[0].in_channels, 9, 14).contiguous(memory_format=torch.channels_last)
    given, seen = x.clone(), []
    with torch.no_grad(), torch.autocast("cpu", enabled=precision == torch.bfloat16):
        expected = stage(x)
        with optimize(stage):
            bound = 1e-5 if precision == torch.float32 else 0.1
            torch.testing.assert_close(stage(x), expected, rtol=bound, atol=bound)
            handle = stage[1].register_forward_hook(lambda *call: seen.append(call[2]))
            second = stage(x)
            handle.remove()
        assert torch.equal(x, given)
        torch.testing.assert_close(stage[3](stage[2](seen[0])), second, rtol=bound, atol=bound)
