"""Embeddings, perceptrons, norms and transformer layers against independent references."""

import math

import pytest
import torch
import torch.nn.functional as F
from detrex.layers import (
    FFN,
    MLP,
    BaseTransformerLayer,
    ConvNorm,
    LayerNorm,
    MultiheadAttention,
    PositionEmbeddingLearned,
    PositionEmbeddingSine,
    TransformerLayerSequence,
    get_sine_pos_embed,
)
from torch import nn


def test_sine_embedding_follows_the_formula():
    embedding = PositionEmbeddingSine(num_pos_feats=8, normalize=True, offset=-0.5)
    padding = torch.zeros(2, 4, 6, dtype=torch.bool)
    padding[1, 3:] = True
    padding[1, :, 4:] = True
    actual = embedding(padding)
    assert actual.shape == (2, 16, 4, 6)
    for image, (height, width) in enumerate([(4, 6), (3, 4)]):
        for row, column in [(0, 0), (2, 3)]:
            y = (row + 1 - 0.5) / (height + 1e-6) * 2 * math.pi
            x = (column + 1 - 0.5) / (width + 1e-6) * 2 * math.pi
            expected = []
            for coordinate in (y, x):
                for channel in range(8):
                    angle = coordinate / 10000 ** (2 * (channel // 2) / 8)
                    expected.append(math.cos(angle) if channel % 2 else math.sin(angle))
            torch.testing.assert_close(
                actual[image, :, row, column], torch.tensor(expected), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("exchange_xy", [True, False])
def test_coordinate_embedding_follows_the_formula(exchange_xy):
    position = torch.rand(2, 3, 4)
    actual = get_sine_pos_embed(position, num_pos_feats=6, exchange_xy=exchange_xy)
    assert actual.shape == (2, 3, 24)
    order = [1, 0, 2, 3] if exchange_xy else [0, 1, 2, 3]
    for slot, coordinate in enumerate(order):
        for channel in range(6):
            angle = position[..., coordinate] * 2 * math.pi / 10000 ** (2 * (channel // 2) / 6)
            expected = angle.cos() if channel % 2 else angle.sin()
            torch.testing.assert_close(actual[..., slot * 6 + channel], expected, atol=1e-5, rtol=0)


def test_learned_embedding_concatenates_columns_and_rows():
    embedding = PositionEmbeddingLearned(num_pos_feats=4, row_num_embed=5, col_num_embed=6)
    out = embedding(torch.zeros(2, 3, 4))
    torch.testing.assert_close(
        out[1, :, 2, 3], torch.cat([embedding.col_embed.weight[3], embedding.row_embed.weight[2]])
    )
    with pytest.raises(ValueError, match="6 x 4 pixels exceeds"):
        embedding(torch.zeros(1, 6, 4))


def test_mlp_and_ffn():
    mlp, x = MLP(4, 6, 2, 3), torch.randn(5, 4)
    first, second, last = mlp.layers
    torch.testing.assert_close(mlp(x), last(second(first(x).relu()).relu()))
    ffn, identity = FFN(4, 8), torch.randn(5, 4)
    assert sorted(ffn.state_dict()) == [
        "layers.0.0.bias",
        "layers.0.0.weight",
        "layers.1.bias",
        "layers.1.weight",
    ]
    hidden = ffn.layers[1](ffn.layers[0][0](x).relu())
    torch.testing.assert_close(ffn(x), x + hidden)
    torch.testing.assert_close(ffn(x, identity), identity + hidden)
    with pytest.raises(ValueError, match="num_fcs >= 2"):
        FFN(4, 8, num_fcs=1)


@pytest.mark.parametrize("channel_last", [True, False])
def test_layer_norm_in_both_layouts(channel_last):
    norm, x = LayerNorm(6, channel_last=channel_last), torch.randn(2, 3, 4, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = F.layer_norm(x, (6,), norm.weight, norm.bias, 1e-6)
    actual = norm(x) if channel_last else norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(actual, expected)


def test_conv_norm_has_no_activation():
    conv = ConvNorm(3, 4, kernel_size=3, padding=1, norm_layer=nn.BatchNorm2d(4))
    assert conv.activation is None
    assert set(dict(conv.named_modules())) == {"", "conv", "norm"}
    assert conv(torch.randn(2, 3, 5, 5)).min() < 0


def make_layer(order):
    return BaseTransformerLayer(
        attn=MultiheadAttention(8, 2, batch_first=True),
        ffn=FFN(8, 16),
        norm=nn.LayerNorm(8),
        operation_order=order,
    ).eval()


def test_post_norm_layer_runs_its_operations_in_order():
    layer = make_layer(("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"))
    x, pos, memory = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    expected = layer.norms[0](layer.attentions[0](x, x, x, query_pos=pos, key_pos=pos))
    expected = layer.attentions[1](expected, memory, memory, query_pos=pos, key_pos=memory)
    expected = layer.norms[2](layer.ffns[0](layer.norms[1](expected)))
    actual = layer(x, memory, memory, query_pos=pos, key_pos=memory)
    torch.testing.assert_close(actual, expected)
    parameters = {id(p) for p in layer.attentions[0].parameters()}
    assert parameters.isdisjoint(id(p) for p in layer.attentions[1].parameters())


def test_pre_norm_layer_adds_the_input_from_before_the_norm():
    layer, x = make_layer(("norm", "self_attn", "norm", "ffn")), torch.randn(2, 3, 8)
    normed = layer.norms[0](x)
    attended = layer.attentions[0](normed, normed, normed, x)
    expected = layer.ffns[0](layer.norms[1](attended), attended)
    torch.testing.assert_close(layer(x), expected)


def test_transformer_layers_reject_what_does_not_fit():
    with pytest.raises(ValueError, match="operation_order must hold"):
        make_layer(("self_attn", "mlp"))
    with pytest.raises(ValueError, match="needs 2 attention modules, got 1"):
        BaseTransformerLayer(
            [MultiheadAttention(8, 2)], FFN(8), nn.LayerNorm(8), ("self_attn", "cross_attn")
        )
    with pytest.raises(ValueError, match="attn_masks has 2 entries"):
        make_layer(("self_attn", "norm"))(torch.zeros(1, 2, 8), attn_masks=[None, None])
    with pytest.raises(ValueError, match="got 1 transformer layers for num_layers=2"):
        TransformerLayerSequence([nn.Linear(2, 2)], 2)


def test_layer_sequence_copies_a_single_layer():
    sequence = TransformerLayerSequence(nn.Linear(2, 2), 3)
    assert len({id(layer.weight) for layer in sequence.layers}) == 3
    assert all(torch.equal(sequence.layers[0].weight, x.weight) for x in sequence.layers)
