"""The affine bypass of left-out tokens: its laws, against an encoder written out per token."""

import copy

import pytest
import torch
from torch import nn

from tests.encoder.scheduled_bypass import DEPTH, SIZES, scheduled
from tests.plain_encoder import CHANNELS, plain_layer
from tests.pyramids import make_batch, valid_rows
from tokendetr.encoder import bypass_pass
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.layers.cpu import optimize
from tokendetr.tokens import LevelLayout


def naive_entry(bypass, layout, x_NC):
    """Add to each token, one by one, what it takes in of its surroundings."""
    if bypass.context_weight is None:
        return x_NC
    grids = [layout.grid(x_NC[None], level)[0] for level in range(layout.num_levels)]
    entries = []
    for level, grid_HWC in enumerate(grids):
        if level + 1 == len(grids):
            entries.append(grid_HWC.flatten(0, 1))
            continue
        following_HWC, weight_CS = grids[level + 1], bypass.context_weight[level]

        def around(y, x, own=grid_HWC, following=following_HWC):
            mean_C = own[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten(0, 1).mean(dim=0)
            return torch.cat([mean_C, following[y, x]])

        def places(position, size):
            """The two nearest blocks along an axis, with their weights."""
            center = min(max((position + 0.5) / 2 - 0.5, 0.0), size - 1.0)
            low = int(center)
            return [(low, 1 - center + low), (min(low + 1, size - 1), center - low)]

        for row in range(grid_HWC.shape[0]):
            for column in range(grid_HWC.shape[1]):
                seen_S = sum(
                    down * across * around(y, x)
                    for y, down in places(row, following_HWC.shape[0])
                    for x, across in places(column, following_HWC.shape[1])
                )
                entries.append((grid_HWC[row, column] + weight_CS @ seen_S)[None])
    return torch.cat(entries)


def naive_encoder(encoder, pyramid):
    """Run one image token by token: its features, and its position under the maps."""
    sparsifier, layout = encoder.sparsifier, pyramid.layout
    bypass = sparsifier.bypass
    x_NC, pos = pyramid.x_BNC[0], pyramid.pos_BNC[0]
    level_N = torch.tensor([level for level, n in enumerate(layout.level_sizes) for _ in range(n)])
    reference = layout.reference_points_BNL2()[0].to(x_NC.dtype)
    valid = torch.ones(len(x_NC), dtype=x_NC.dtype)
    entry_NC = naive_entry(bypass, layout, x_NC)

    def mapped(layer):
        if layer < 0:
            return x_NC
        weight, bias = bypass.weight[layer][level_N], bypass.bias[layer][level_N]
        return entry_NC + torch.einsum("noc,nc->no", weight, entry_NC) + bias

    memory = x_NC.clone()
    for index, layer in enumerate(encoder.layers):
        kept = sparsifier.kept(index, x_NC)
        updated = plain_layer(
            layer, memory[kept], memory, pos[kept], reference[kept], valid, layout.level_shapes
        )
        memory = memory + mapped(index) - mapped(index - 1)
        memory[kept] = updated
    return memory


SCHEDULES = {
    "one set": ([0.3] * DEPTH, True),
    "cascade": ([0.6, 0.4, 0.4, 0.2], True),
    "all, then few": ([1, 0.5, 0.2, 0.1], True),
    "other sets": ([0.3, 0.5, 0.2, 0.6], False),
    "all in the middle": ([0.3, 1, 0.2, 0.1], False),
}


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_it_equals_the_naive_encoder_also_in_a_padded_batch(name, fixed_shapes, monkeypatch):
    if fixed_shapes:  # the form of traced programs
        monkeypatch.setattr(bypass_pass, "_SortedPass", bypass_pass._MaskedPass)
    shares, carry = SCHEDULES[name]
    encoder = scheduled(shares, carry=carry)
    batch, alone = make_batch(SIZES, CHANNELS, dtype=torch.float64)
    with torch.no_grad():
        memory = encoder(**batch.inputs)
        for image, single in enumerate(alone):
            expected = naive_encoder(encoder, single)
            got = valid_rows(batch.layout, memory, image)
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(encoder(**single.inputs)[0], expected, rtol=1e-9, atol=1e-9)


def test_it_equals_the_naive_encoder_without_context():
    encoder = scheduled([0.6, 0.4, 0.4, 0.2], carry=True, context=False)
    _, (single, *_) = make_batch(SIZES, CHANNELS, dtype=torch.float64)
    with torch.no_grad():
        expected = naive_encoder(encoder, single)
        torch.testing.assert_close(encoder(**single.inputs)[0], expected, rtol=1e-9, atol=1e-9)


def test_a_context_needs_levels_that_halve():
    encoder = scheduled([0.3] * DEPTH)
    shapes = [(9, 9), (4, 5), (2, 3), (1, 2)]
    layout = LevelLayout.from_valid_sizes(shapes, [shapes])
    with pytest.raises(ValueError, match=r"level 0 has 9 x 9 tokens, the next 4 x 5"):
        encoder.sparsifier.bypass.entry(layout, torch.zeros(1, layout.num_tokens, CHANNELS))


@pytest.mark.parametrize("name", SCHEDULES)
def test_gradients_equal_those_of_the_naive_encoder(name):
    shares, carry = SCHEDULES[name]
    encoder = scheduled(shares, carry=carry).train()
    _, alone = make_batch(SIZES[1:2], CHANNELS, dtype=torch.float64)
    weight = torch.randn_like(alone[0].x_BNC[0])
    parameters = list(encoder.parameters())
    found = torch.autograd.grad((encoder(**alone[0].inputs)[0] * weight).sum(), parameters)
    expected = torch.autograd.grad((naive_encoder(encoder, alone[0]) * weight).sum(), parameters)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


class Adapter(nn.Module):
    """A linear layer with a product of low rank beside it, which shows the layer's own weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.added = nn.Linear(layer.in_features, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.added(x)


def with_hook(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def with_weight_norm(layer: nn.Linear) -> nn.Linear:
    layer = nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    return layer


@pytest.mark.parametrize("change", [Adapter, with_hook, with_weight_norm])
@pytest.mark.parametrize("optimized", [False, True])
def test_whatever_a_value_projection_computes_counts(change, optimized):
    """Whether its weights fold into the maps or not, the memory is that of a plain product."""
    encoder = scheduled([0.5, 0.4, 0.3, 0.2], carry=True).float()
    batch, _ = make_batch(SIZES, CHANNELS)
    real = batch.layout.valid_BN
    plain = copy.deepcopy(encoder)
    if optimized:
        optimize(encoder)
    with torch.no_grad():
        for layer, same in zip(encoder.layers, plain.layers, strict=True):
            attention, expected = layer.attentions[0], same.attentions[0].value_proj
            attention.value_proj = change(attention.value_proj)
            if change is Adapter:
                expected.weight.add_(attention.value_proj.added.weight)
            else:
                expected.weight.mul_(2)
            if change is with_hook:
                expected.bias.mul_(2)
        torch.testing.assert_close(
            encoder(**batch.inputs)[real], plain(**batch.inputs)[real], rtol=1e-5, atol=2e-5
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize:UserWarning")
def test_an_encoder_with_quantized_products_is_near_its_original():
    encoder = scheduled([0.3] * DEPTH, carry=True).float()
    batch, _ = make_batch(SIZES, CHANNELS)
    real = batch.layout.valid_BN
    quantized = torch.ao.quantization.quantize_dynamic(encoder, {nn.Linear})
    with torch.no_grad():
        exact, near = encoder(**batch.inputs)[real], quantized(**batch.inputs)[real]
    assert 0 < (near - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_a_pre_norm_encoder_sees_moved_values():
    encoder = scheduled([0.3] * DEPTH, pre_norm=True)
    batch, _ = make_batch(SIZES, CHANNELS, dtype=torch.float64)
    with torch.no_grad():
        memory = encoder(**batch.inputs)
        encoder.sparsifier.bypass.weight[:-1] = 0  # input of the inner layers
        assert not torch.allclose(encoder(**batch.inputs), memory)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("policy", ["updated", "initial"])
def test_a_new_bypass_changes_nothing(policy, context):
    batch, _ = make_batch(SIZES, CHANNELS)
    shares = [0.5, 0.4, 0.3, 0.2]
    plain = scheduled(shares, bypass=False, carry=True, value_policy=policy).float()
    moving = copy.deepcopy(plain)
    moving.sparsifier.bypass = AffineBypass(
        embed_dim=CHANNELS, num_layers=DEPTH, num_levels=4, context=context
    )
    real = batch.layout.valid_BN
    with torch.no_grad():
        a, b = plain(**batch.inputs), moving(**batch.inputs)
    torch.testing.assert_close(a[real], b[real], rtol=1e-6, atol=1e-6)


def test_initial_values_stay_as_they_came_in():
    """With value_policy="initial" only the final memory of left-out tokens moves."""
    shares = [0.3] * DEPTH
    encoder = scheduled(shares, carry=True, value_policy="initial")
    _, (single, *_) = make_batch(SIZES, CHANNELS, dtype=torch.float64)
    with torch.no_grad():
        memory = encoder(**single.inputs)[0]
        encoder.sparsifier.bypass.weight[:-1].normal_()
        assert torch.equal(encoder(**single.inputs)[0], memory)
        kept = encoder.sparsifier.kept(0, single.x_BNC[0])
        encoder.sparsifier.bypass = None
        assert torch.equal(encoder(**single.inputs)[0][kept], memory[kept])
