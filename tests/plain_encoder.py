"""A small encoder with random weights, and one of its layers written out for a single image."""

import torch
from torch import nn

from tokendetr.encoder import TokenEncoder
from tokendetr.ops import ms_deform_attn_fused_reference

CHANNELS = 32


def make_encoder(sparsifier=None, *, seed=0, **kwargs) -> TokenEncoder:
    torch.manual_seed(seed)
    options = {"embed_dim": CHANNELS, "num_heads": 4, "feedforward_dim": 48, "num_layers": 3}
    encoder = TokenEncoder(
        **{**options, "attn_dropout": 0.0, "ffn_dropout": 0.0, **kwargs}, sparsifier=sparsifier
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1) if parameter.dim() > 1 else None
    return encoder


def plain_layer(layer, tokens, value, pos, reference, valid, shapes):
    """Apply one post-norm layer to one image, written out with the layer's weights."""
    attention, ffn, (norm1, norm2) = layer.attentions[0], layer.ffns[0], layer.norms
    heads, levels, points = attention.num_heads, attention.num_levels, attention.num_points
    query = tokens if pos is None else tokens + pos
    projected = attention.value_proj(value) * valid[:, None]
    attended = ms_deform_attn_fused_reference(
        projected.view(1, len(value), heads, -1),
        shapes,
        reference[None],
        attention.sampling_offsets(query).view(1, len(query), heads, levels, points, 2),
        attention.attention_weights(query).view(1, len(query), heads, levels, points),
    )[0]
    tokens = norm1(tokens + attention.output_proj(attended))
    linear1, linear2 = ffn.layers[0][0], ffn.layers[1]
    return norm2(tokens + linear2(torch.relu(linear1(tokens))))
