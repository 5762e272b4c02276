"""Deformable, multi-head and conditional attention against independent references."""

import math

import pytest
import torch
import torch.nn.functional as F
from detrex.layers import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    multi_scale_deformable_attn_pytorch,
)
from torch import nn


def pixel(grid, y, x):
    """Return the value at integer coordinates, zero outside."""
    height, width, _ = grid.shape
    if 0 <= y < height and 0 <= x < width:
        return grid[y, x]
    return torch.zeros_like(grid[0, 0])


def naive_deformable(value, shapes, locations, weights):
    """Bilinear sampling written out point by point."""
    batch, _, heads, _ = value.shape
    _, queries, _, levels, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    starts = [sum(h * w for h, w in shapes[:i]) for i in range(levels)]
    for b, q, m, lv, p in torch.cartesian_prod(
        *[torch.arange(n) for n in (batch, queries, heads, levels, points)]
    ).tolist():
        h, w = shapes[lv]
        grid = value[b, starts[lv] : starts[lv] + h * w, m].view(h, w, -1)
        x = (locations[b, q, m, lv, p, 0] * w - 0.5).item()
        y = (locations[b, q, m, lv, p, 1] * h - 0.5).item()
        x0, y0 = math.floor(x), math.floor(y)
        for yy, wy in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
            for xx, wx in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
                out[b, q, m] += weights[b, q, m, lv, p] * wy * wx * pixel(grid, yy, xx)
    return out.flatten(2)


def test_deformable_sampling_equals_a_naive_loop_also_outside_the_maps():
    shapes = [(3, 5), (2, 2)]
    value = torch.randn(2, 19, 2, 3, dtype=torch.float64)
    locations = torch.rand(2, 4, 2, 2, 3, 2, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(2, 4, 2, 2, 3, dtype=torch.float64)
    expected = naive_deformable(value, shapes, locations, weights)
    for given in (torch.tensor(shapes), shapes):
        actual = multi_scale_deformable_attn_pytorch(value, given, locations, weights)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reference_dim", [2, 4])
@pytest.mark.parametrize("batch_first", [True, False])
def test_deformable_attention_module(reference_dim, batch_first):
    shapes = torch.tensor([[3, 5], [2, 2]])
    attention = MultiScaleDeformableAttention(
        8, 2, num_levels=2, num_points=3, batch_first=batch_first
    ).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    attention.eval()
    query, pos = torch.randn(2, 2, 4, 8, dtype=torch.float64)
    value = torch.randn(2, 19, 8, dtype=torch.float64)
    padding = torch.rand(2, 19) < 0.3
    reference = torch.rand(2, 4, 2, reference_dim, dtype=torch.float64)

    projected = attention.value_proj(value).masked_fill(padding[..., None], 0).view(2, 19, 2, 4)
    offsets = attention.sampling_offsets(query + pos).view(2, 4, 2, 2, 3, 2)
    weights = attention.attention_weights(query + pos).view(2, 4, 2, 6).softmax(-1)
    size = torch.tensor([[5, 3], [2, 2]]).view(1, 1, 1, 2, 1, 2)
    center = reference[:, :, None, :, None, :2]
    if reference_dim == 2:
        locations = center + offsets / size
    else:
        locations = center + offsets / 3 * reference[:, :, None, :, None, 2:] * 0.5
    sampled = naive_deformable(projected, shapes.tolist(), locations, weights.view(2, 4, 2, 2, 3))
    expected = attention.output_proj(sampled) + query

    def layout(x):
        return x if batch_first else x.transpose(0, 1)

    actual = attention(
        layout(query),
        value=layout(value),
        query_pos=layout(pos),
        key_padding_mask=padding,
        reference_points=reference,
        spatial_shapes=shapes,
    )
    torch.testing.assert_close(layout(actual), expected, rtol=1e-10, atol=1e-12)


def test_deformable_attention_starts_with_heads_looking_around():
    attention = MultiScaleDeformableAttention(32, 8, num_levels=2, num_points=4)
    offsets = attention.sampling_offsets.bias.view(8, 2, 4, 2)
    expected = torch.tensor(
        [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    ).float()
    for point in range(4):
        for level in range(2):
            torch.testing.assert_close(
                offsets[:, level, point], expected * (point + 1), atol=1e-5, rtol=0
            )
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.bias.any()


def test_deformable_attention_rejects_bad_input():
    with pytest.raises(ValueError, match="divisible|not a multiple"):
        MultiScaleDeformableAttention(30, 8)
    attention = MultiScaleDeformableAttention(16, 2, num_levels=1, batch_first=True)
    query, reference = torch.zeros(1, 3, 16), torch.zeros(1, 3, 1, 2)
    with pytest.raises(ValueError, match="add up to 3"):
        attention(query, reference_points=reference, spatial_shapes=torch.tensor([[2, 2]]))
    with pytest.raises(ValueError, match="2 .points. or 4"):
        attention(
            query, reference_points=torch.zeros(1, 3, 1, 3), spatial_shapes=torch.tensor([[1, 3]])
        )
    with pytest.raises(ValueError, match="reference_points and spatial_shapes"):
        attention(query)


def test_attention_weights_are_there_for_whoever_hooks_them():
    attention = MultiheadAttention(16, 4, batch_first=True)
    query, position = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    inputs = {"query_pos": position, "key_padding_mask": padding}
    expected = attention(query, **inputs)  # no dropout: training and evaluation agree
    attention.eval()
    torch.testing.assert_close(attention(query, **inputs), expected)
    seen = []
    attention.attn.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    torch.testing.assert_close(attention(query, **inputs), expected)
    torch.testing.assert_close(seen[0].sum(dim=-1), torch.ones(2, 5))


def test_multihead_attention_equals_torch_with_positions_and_identity():
    attention = MultiheadAttention(16, 4, batch_first=True).eval()
    query, query_pos = torch.randn(2, 2, 5, 16)
    key, key_pos = torch.randn(2, 2, 7, 16)
    forbidden = torch.rand(5, 7) < 0.3
    forbidden[:, 0] = False
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    expected = query + F.multi_head_attention_forward(
        (query + query_pos).transpose(0, 1),
        (key + key_pos).transpose(0, 1),
        key.transpose(0, 1),
        16,
        4,
        attention.attn.in_proj_weight,
        attention.attn.in_proj_bias,
        None,
        None,
        False,
        0.0,
        attention.attn.out_proj.weight,
        attention.attn.out_proj.bias,
        attn_mask=forbidden,
        key_padding_mask=padding,
    )[0].transpose(0, 1)
    actual = attention(
        query,
        key,
        query_pos=query_pos,
        key_pos=key_pos,
        attn_mask=forbidden,
        key_padding_mask=padding,
    )
    torch.testing.assert_close(actual, expected)
    with pytest.warns(UserWarning, match="position encoding of key is missing"):
        attention(query, key, query_pos=query_pos)


@pytest.mark.parametrize("cls", [ConditionalSelfAttention, ConditionalCrossAttention])
def test_conditional_attention_is_the_same_in_both_layouts(cls):
    sequence_first = cls(16, 4).eval()
    batch_first = cls(16, 4, batch_first=True).eval()
    batch_first.load_state_dict(sequence_first.state_dict())
    query, query_pos, sine = torch.randn(3, 2, 5, 16)
    key, key_pos = torch.randn(2, 2, 7, 16)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 4:] = True
    kwargs = {"query_sine_embed": sine} if cls is ConditionalCrossAttention else {}
    batched = batch_first(
        query, key, query_pos=query_pos, key_pos=key_pos, key_padding_mask=padding, **kwargs
    )
    swapped = {name: x.transpose(0, 1) for name, x in kwargs.items()}
    sequenced = sequence_first(
        query.transpose(0, 1),
        key.transpose(0, 1),
        query_pos=query_pos.transpose(0, 1),
        key_pos=key_pos.transpose(0, 1),
        key_padding_mask=padding,
        **swapped,
    )
    torch.testing.assert_close(batched, sequenced.transpose(0, 1))
    # padded keys do not matter
    changed = key.clone()
    changed[0, 4:] = 100.0
    again = batch_first(
        query, changed, query_pos=query_pos, key_pos=key_pos, key_padding_mask=padding, **kwargs
    )
    torch.testing.assert_close(batched, again)


def test_conditional_cross_attention_scores_are_content_plus_position():
    attention = ConditionalCrossAttention(8, 2, batch_first=True).eval()
    query, query_pos, sine = torch.randn(3, 1, 3, 8)
    key, key_pos = torch.randn(2, 1, 4, 8)

    def heads(x):
        return x.view(1, -1, 2, 4).transpose(1, 2)

    k_pos = attention.key_pos_proj(key_pos)
    q = attention.query_content_proj(query) + attention.query_pos_proj(query_pos)
    k = attention.key_content_proj(key) + k_pos
    scores = heads(q) @ heads(k).mT
    scores = scores + heads(attention.query_pos_sine_proj(sine)) @ heads(k_pos).mT
    weights = (scores / math.sqrt(8)).softmax(-1)
    out = (weights @ heads(attention.value_proj(key))).transpose(1, 2).reshape(1, 3, 8)
    expected = query + attention.out_proj(out)
    actual = attention(
        query,
        key,
        query_pos=query_pos,
        key_pos=key_pos,
        query_sine_embed=sine,
        is_first_layer=True,
    )
    torch.testing.assert_close(actual, expected)
