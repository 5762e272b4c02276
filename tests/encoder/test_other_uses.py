"""Encoders in the hands of PyTorch's own tools: transformed functions, wrapped layers."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from sparse_detr import SparseSparsifier
from tests.plain_encoder import CHANNELS, make_encoder
from tests.pyramids import make_batch
from tokendetr.encoder import AffineBypass
from tokendetr.errors import ConfigError

LAYERS, LEVELS = 3, 4


def sparse_encoder():
    """A sparse one whose skipped tokens are mapped, and its inputs with padding."""
    torch.manual_seed(0)
    bypass = AffineBypass(embed_dim=CHANNELS, num_layers=LAYERS, num_levels=LEVELS, context=True)
    for parameter in bypass.parameters():
        nn.init.normal_(parameter, std=0.1)
    sparsifier = SparseSparsifier(
        keep_ratio=0.4,
        embed_dim=CHANNELS,
        num_layers=LAYERS,
        projection="own",
        auxiliary_heads=False,
        bypass=bypass,
    )
    encoder = make_encoder(sparsifier, num_feature_levels=LEVELS).eval()
    nn.init.normal_(bypass.weight, std=0.1)
    batch, _ = make_batch([(24, 32), (18, 20)], CHANNELS)
    return encoder, batch


class Wrapped(nn.Module):
    """What tools put around a layer: nothing of it is known but its call."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *arguments):
        return self.layer(*arguments)


def test_wrapped_layers_give_the_same():
    encoder, batch = sparse_encoder()
    with torch.no_grad():
        expected = encoder(**batch.inputs)
        for index, layer in enumerate(encoder.layers):
            encoder.layers[index] = Wrapped(layer)
        found = encoder(**batch.inputs)
    valid_BN = batch.layout.valid_BN
    torch.testing.assert_close(found[valid_BN], expected[valid_BN], rtol=1e-5, atol=1e-5)


def test_gradients_of_a_function_are_those_of_autograd():
    encoder, batch = sparse_encoder()

    def loss(parameters):
        memory = functional_call(encoder, parameters, (), batch.inputs)
        return memory[batch.layout.valid_BN].square().sum()

    parameters = dict(encoder.named_parameters())
    loss(parameters).backward()
    found = torch.func.grad(loss)({name: value.detach() for name, value in parameters.items()})
    for name, parameter in parameters.items():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of index_copy in torch.vmap
def test_models_are_run_at_once():
    encoder, batch = sparse_encoder()
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        stacked, _ = stack_module_state([encoder, other])
        found = torch.func.vmap(
            lambda parameters: functional_call(encoder, parameters, (), batch.inputs)
        )(stacked)
        for memory, alone in zip(found, (encoder, other), strict=True):
            expected, valid_BN = alone(**batch.inputs), batch.layout.valid_BN
            torch.testing.assert_close(memory[valid_BN], expected[valid_BN], rtol=1e-4, atol=1e-4)


def test_modules_of_another_kind_are_refused_by_name():
    with pytest.raises(ConfigError, match="sparsifier is a Linear, no TokenSparsifier"):
        make_encoder(nn.Linear(1, 1))
    sparsifier = SparseSparsifier(
        keep_ratio=0.4, num_layers=3, embed_dim=CHANNELS, projection="own"
    )
    sparsifier.bypass = nn.Identity()
    with pytest.raises(ValueError, match="the bypass has embed_dim=None"):
        make_encoder(sparsifier)
