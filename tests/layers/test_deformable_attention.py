"""The attention module: upstream's initialization and argument conventions."""

import math

import detrex.layers
import pytest
import torch

from tokendetr.layers.deformable_attention import MultiScaleDeformableAttention

SHAPES = ((6, 8), (3, 4))
TOKENS = 60


def make(**kwargs) -> MultiScaleDeformableAttention:
    torch.manual_seed(0)
    options = {"embed_dim": 16, "num_heads": 4, "num_levels": 2, "num_points": 3, "dropout": 0.0}
    attention = MultiScaleDeformableAttention(**{**options, **kwargs})
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(attention.attention_weights.weight, std=0.3)
    return attention


def test_heads_look_in_a_ring():
    attention = MultiScaleDeformableAttention(embed_dim=16, num_heads=4, num_levels=2, num_points=3)
    bias = attention.sampling_offsets.bias.view(4, 2, 3, 2)
    for head in range(4):
        angle = 2 * math.pi * head / 4
        x, y = math.cos(angle), math.sin(angle)
        scale = max(abs(x), abs(y))
        for level in range(2):
            for point in range(3):
                expected = [x / scale * (point + 1), y / scale * (point + 1)]
                assert bias[head, level, point].tolist() == pytest.approx(expected, abs=1e-6)
    assert not attention.sampling_offsets.weight.any()
    assert (
        not attention.attention_weights.weight.any() and not attention.attention_weights.bias.any()
    )
    assert isinstance(attention.sampling_offsets.bias, torch.nn.Parameter)


def test_upstreams_class_recognizes_ours_and_has_the_same_keys():
    ours, theirs = make(), detrex.layers.MultiScaleDeformableAttention(16, 4, 2, 3)
    assert isinstance(ours, detrex.layers.MultiScaleDeformableAttention)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_it_equals_upstreams_module(boxes, batch_first):
    ours = make(batch_first=batch_first)
    theirs = detrex.layers.MultiScaleDeformableAttention(16, 4, 2, 3, 64, 0.0, batch_first)
    theirs.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(1)
    query, pos = torch.randn(2, 2, 5, 16, generator=generator)
    value = torch.randn(2, TOKENS, 16, generator=generator)
    if not batch_first:
        query, pos, value = query.transpose(0, 1), pos.transpose(0, 1), value.transpose(0, 1)
    arguments = {
        "query": query,
        "key": None,
        "value": value,
        "query_pos": pos,
        "key_padding_mask": torch.rand(2, TOKENS, generator=generator) < 0.2,
        "reference_points": torch.rand(2, 5, 2, 4 if boxes else 2, generator=generator),
        "spatial_shapes": torch.tensor(SHAPES),
        "level_start_index": torch.tensor([0, 48]),
        "valid_ratios": torch.ones(2, 2, 2),
        "key_pos": None,
    }
    expected = theirs(**arguments)
    torch.testing.assert_close(ours(**arguments), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ours(**arguments, level_shapes=SHAPES), expected, rtol=1e-5, atol=1e-5
    )
    other = torch.randn(query.shape, generator=generator)
    torch.testing.assert_close(
        ours(**arguments, identity=other), expected - query + other, rtol=1e-5, atol=1e-5
    )


def test_values_default_to_the_queries():
    attention = make(batch_first=True)
    x, reference = torch.randn(1, TOKENS, 16), torch.rand(1, TOKENS, 2, 2)
    arguments = {"reference_points": reference, "level_shapes": SHAPES}
    assert torch.equal(attention(x, **arguments), attention(x, value=x, **arguments))


def test_weights_and_locations_add_up_to_the_output():
    attention = make(batch_first=True)
    query, value = torch.randn(1, 7, 16), torch.randn(1, TOKENS, 16)
    reference = torch.rand(1, 7, 2, 2)
    locations, weights = attention.locations_and_weights(query, reference, SHAPES)
    torch.testing.assert_close(weights.sum(dim=(3, 4)), torch.ones(1, 7, 4))
    from tokendetr.ops import ms_deform_attn

    sampled = ms_deform_attn(
        attention.value_proj(value).view(1, TOKENS, 4, 4), SHAPES, locations, weights
    )
    expected = attention(query, value=value, reference_points=reference, level_shapes=SHAPES)
    torch.testing.assert_close(attention.output_proj(sampled) + query, expected)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="embed_dim"):
        MultiScaleDeformableAttention(embed_dim=10, num_heads=4)
    with pytest.warns(UserWarning, match="power of two"):
        MultiScaleDeformableAttention(embed_dim=12, num_heads=4)
    attention, x = make(batch_first=True), torch.randn(1, TOKENS, 16)
    with pytest.raises(ValueError, match="reference_points"):
        attention(x, level_shapes=SHAPES)
    with pytest.raises(ValueError, match="level_shapes"):
        attention(x, reference_points=torch.rand(1, TOKENS, 2, 2))
    with pytest.raises(ValueError, match="level_shapes"):
        attention(x, reference_points=torch.rand(1, TOKENS, 2, 2), level_shapes=((6, 8), (3, 3)))
