"""Focus-DETR's encoder for a single image, written out from the paper's text."""

import math

import torch
from torch.nn import functional as F

from tests.plain_encoder import plain_layer


def plain_score(head, x):
    """The score head of one level's tokens [N, C]."""
    norm, first = head.layer1[0], head.layer1[1]
    hidden = F.gelu(first(norm(x)))
    half = hidden.shape[1] // 2
    hidden = torch.cat([hidden[:, :half], hidden[:, half:].mean(0).expand(len(x), -1)], dim=1)
    for index in (0, 2):
        hidden = F.gelu(head.layer2[index](hidden))
    return head.layer2[4](hidden)[:, 0]


def plain_foreground(selector, levels, shapes):
    """Logits of each level, from the coarsest to the finest."""
    logits = {}
    top = len(shapes) - 1
    for step, level in enumerate(range(top, -1, -1)):
        x = levels[level]
        if level < top:
            above = logits[level + 1].view(1, 1, *shapes[level + 1])
            up = F.interpolate(above, size=shapes[level], mode="bilinear", align_corners=True)
            x = x * (1 + selector.level_scales[step - 1] * up.flatten()[:, None])
        logits[level] = plain_score(selector.score_head, x)
    return torch.cat([logits[level] for level in range(len(shapes))])


def plain_objects(block, x, pos):
    """Self-attention of object tokens [Q, C], head by head."""
    attention, heads = block.attention.attn, block.attention.num_heads
    query, key, value = (
        F.linear(source, weight, bias)
        for source, weight, bias in zip(
            (x + pos, x + pos, x),
            attention.in_proj_weight.chunk(3),
            attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    mixed = []
    for q, k, v in zip(*(t.chunk(heads, dim=1) for t in (query, key, value)), strict=True):
        mixed.append((q @ k.T / math.sqrt(q.shape[1])).softmax(dim=1) @ v)
    return block.norm(x + attention.out_proj(torch.cat(mixed, dim=1)))


def plain_encoder(encoder, heads, x, pos, reference, layout, ratios):
    """Compute the memory of one image without padding [N, C], by loops over tokens."""
    projection, norm, class_head = heads
    focus, shapes = encoder.sparsifier, layout.level_shapes
    usable = layout.proposals()[1][0]
    tokens = norm(projection((x + pos) * usable[:, None]))
    logits = plain_foreground(focus.selector, tokens.split(layout.level_sizes), shapes)
    ranked = sorted(range(len(x)), key=lambda token: (-float(logits[token]), token))
    memory, valid = x.clone(), torch.ones(len(x), dtype=x.dtype)
    for layer, ratio in zip(encoder.layers, ratios, strict=True):
        index = ranked[: math.ceil(ratio * len(x) - 1e-9)]
        kept = memory[index]
        category = class_head(kept).amax(dim=1).sigmoid()
        score = (category * logits[index].sigmoid()).tolist()
        best = sorted(range(len(index)), key=lambda place: (-score[place], place))
        best = best[: focus.object_attentions.num_objects]
        number = list(encoder.layers).index(layer)
        kept = kept.clone()
        kept[best] = plain_objects(focus.object_attentions[number], kept[best], pos[index][best])
        kept = plain_layer(layer, kept, memory, pos[index], reference[index], valid, shapes)
        memory = memory.clone()
        memory[index] = kept
    return memory
