"""SPT's laws: which tokens attend to each other, and the reach of gradients."""

import copy

import pytest
import torch
from detectron2.modeling.backbone import SwinTransformer
from torch import nn

from spt_backbone import SPT
from tests.spt_backbone.spt_models import SMALL, half_selecting, maps_of, small_spt
from tests.tokens.naive_windows import shifted_window_order
from tokendetr.encoder import image_extents
from tokendetr.layers.cpu import optimize
from tokendetr.tokens import LevelLayout


@pytest.mark.parametrize("seed", range(3))
def test_an_images_output_does_not_depend_on_its_batch(seed):
    model = small_spt(seed, threshold=0.75).double()
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 3, 90, 118, generator=generator, dtype=torch.float64)
    counts = [pack.counts for pack in maps_of(model, images)]
    assert len({count for row in counts for count in row}) > 3
    together = model(images)
    for image in range(3):
        alone = model(images[image : image + 1])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][image], value[0], rtol=1e-9, atol=1e-9)
    swapped = model(images.flip(0))
    for name, value in swapped.items():
        torch.testing.assert_close(together[name], value.flip(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"keep_ratio": 0.5}, {"threshold": 0.0}])
def test_padding_is_never_selected(options):
    model = small_spt(1, **options)
    images = torch.randn(2, 3, 96, 128)
    for training in (False, True):
        model.train(training)
        with image_extents([0, 1], [(96, 50), (33, 128)]):
            packs = maps_of(model, images)
        assert len(packs) == 4
        for pack, stride in zip(packs, (16, 16, 32, 32), strict=True):
            width = 128 // stride
            for image, (height_px, width_px) in enumerate([(96, 50), (33, 128)]):
                own = pack.index_P[pack.index_P // pack.num_all == image] % pack.num_all
                assert (own // width < -(-height_px // stride)).all()
                assert (own % width < -(-width_px // stride)).all()
                if options:
                    assert len(own) > 0


def test_threshold_zero_selects_everything_and_uniform_selection_its_share():
    images = torch.randn(2, 3, 96, 128)
    assert [p.counts for p in maps_of(small_spt(threshold=0.0), images)] == [(48, 48)] * 2 + [
        (12, 12)
    ] * 2
    assert [p.counts for p in maps_of(small_spt(keep_ratio=0.5), images)] == [(24, 24)] * 2 + [
        (6, 6)
    ] * 2


def saturated(model: SPT) -> SPT:
    """Set gates that select everything with a weight of exactly 1."""
    for name, parameter in model.named_parameters():
        if "gate" in name:
            nn.init.zeros_(parameter) if "weight" in name else nn.init.constant_(parameter, 60.0)
    return model


@pytest.mark.parametrize("shifted", [False, True])
def test_selecting_all_of_one_image_is_window_attention(shifted):
    """Stage 3 is 8 x 12 tokens: six full windows, which are the containers."""
    torch.manual_seed(0)
    swin = SwinTransformer(**{**SMALL, "depths": (1, 1, 1, 1)}).double().eval()
    spt = saturated(small_spt(depths=(1, 1, 1, 1))).double()
    spt.load_state_dict(swin.state_dict(), strict=False)
    layer, stage = swin.layers[2], spt.layers[2]
    nn.init.normal_(layer.blocks[0].attn.relative_position_bias_table)
    shift = 2 if shifted else 0
    layer.blocks[0].shift_size = stage.blocks[0].shift_size = shift
    stage.blocks[0].attn.load_state_dict(layer.blocks[0].attn.state_dict())
    x = torch.randn(1, 96, 48, dtype=torch.float64)
    wanted = layer(x, 8, 12)[0]
    layout = LevelLayout.from_valid_sizes([(8, 12)], [[(8, 12)]])
    ours, choices = stage(x, layout, None)
    assert choices[0].pack.num_containers == 6
    same = torch.ones(8, 12, dtype=torch.bool)
    if shifted:  # windows that the cyclic shift wraps are masked in Swin, and one group here
        same[:2] = same[-2:] = False
        same[:, :2] = same[:, -2:] = False
    same = same.flatten()
    torch.testing.assert_close(ours[:, same], wanted[:, same], rtol=1e-10, atol=1e-10)
    assert shifted == bool((ours - wanted).abs().max() > 1e-6)


def block_by_hand(block, x_NC, selected_N, order, grid, finer_N=None):
    """Apply one block to one image with plain loops over groups of the selected tokens."""
    attn, width = block.attn, grid[1]
    normed = block.norm1(x_NC)
    logit = block.gate(normed)[:, 0]
    if finer_N is not None:
        logit = torch.maximum(logit, finer_N)
    tokens = [n for n in order if selected_N[n]]
    out = torch.zeros_like(x_NC)
    side = 2 * block.window_size - 1
    table = attn.relative_position_bias_table.view(side, side, -1)
    reach = block.window_size - 1
    length = block.options.container_length
    for start in range(0, len(tokens), length):
        group = tokens[start : start + length]
        rows = normed[group] * logit[group].sigmoid()[:, None]
        query, key, value = attn.qkv(rows).view(len(group), 3, attn.num_heads, -1).unbind(1)
        for i, a in enumerate(group):
            for head in range(attn.num_heads):
                logits = []
                for j, b in enumerate(group):
                    dy = max(-reach, min(reach, a // width - b // width)) + reach
                    dx = max(-reach, min(reach, a % width - b % width)) + reach
                    dot = (query[i, head] * attn.scale) @ key[j, head]
                    logits.append(dot + table[dy, dx, head])
                weight = torch.stack(logits).softmax(0)
                size = value.shape[-1]
                out[a, head * size : (head + 1) * size] = weight @ value[:, head]
    x_NC = x_NC + attn.proj(out)
    return x_NC + block.mlp(block.norm2(x_NC))


@pytest.mark.parametrize("index", [0, 1])
def test_a_block_matches_plain_loops(index):
    model = half_selecting(2).double()
    block = model.layers[2].blocks[index]
    grid, size = (7, 9), (6, 8)
    x = torch.randn(1, 63, 48, dtype=torch.float64)
    finer = torch.randn(1, 63, dtype=torch.float64)
    layout = LevelLayout.from_valid_sizes([grid], [[size]])
    with torch.no_grad():
        ours, (logit, _, pack) = block(x, layout, finer)
        selected = (logit[0].sigmoid() > 0.5) & layout.valid_BN[0]
        order = shifted_window_order(grid, size, 4, block.shift_size)
        wanted = block_by_hand(block, x[0], selected, order, grid, finer[0])
    assert 16 < len(pack.index_P) < 48
    torch.testing.assert_close(ours[0], wanted, rtol=1e-9, atol=1e-9)


def test_scores_are_the_larger_of_two_scales():
    model = half_selecting(3)
    for stage in (2, 3):
        for block in model.layers[stage].blocks:
            nn.init.zeros_(block.gate.weight)
            nn.init.constant_(block.gate.bias, -100.0)
    images = torch.randn(1, 3, 64, 64)
    nn.init.zeros_(model.gate.weight)
    nn.init.constant_(model.gate.bias, 3.0)
    assert [p.counts for p in maps_of(model, images)] == [(16,), (16,), (4,), (4,)]
    nn.init.constant_(model.gate.bias, -3.0)
    assert [p.counts for p in maps_of(model, images)] == [(0,)] * 4


def test_noise_in_training_only():
    model = half_selecting(4)
    images = torch.randn(1, 3, 96, 96)
    first, second = (maps_of(model, images)[0].index_P for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    first, second = (maps_of(model, images)[0].index_P for _ in range(2))
    assert len(first) != len(second) or not torch.equal(first, second)


def test_a_threshold_in_training_only():
    images = torch.randn(1, 3, 96, 96)
    loose = maps_of(small_spt(threshold=0.0), images)
    strict = maps_of(small_spt(threshold=0.0, evaluation_threshold=1.0), images)
    assert loose[0].counts == (36,)
    assert strict[0].counts == (0,)


def test_the_task_reaches_the_gates_of_selected_tokens():
    model = half_selecting(5).train()
    outputs = model(torch.randn(2, 3, 64, 96))
    sum(value.square().sum() for value in outputs.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    for stage in (2, 3):
        for block in model.layers[stage].blocks:
            assert block.gate.weight.grad.abs().sum() > 0
    assert model.gate.weight.grad.abs().sum() > 0  # wins somewhere


def test_nothing_selected_anywhere_works_and_reaches_every_parameter():
    model = small_spt(6, threshold=1.0).train()
    images = torch.randn(2, 3, 64, 96)
    outputs = model(images)
    assert all(torch.isfinite(value).all() for value in outputs.values())
    sum(value.square().sum() for value in outputs.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert model.layers[2].blocks[0].attn.qkv.weight.grad.abs().max() == 0


def test_unselected_tokens_get_the_feed_forward_network_alone():
    block = small_spt(7, threshold=1.0).layers[2].blocks[0]
    x = torch.randn(1, 16, 48)
    layout = LevelLayout.from_valid_sizes([(4, 4)], [[(4, 4)]])
    wanted = x + block.attn.proj(torch.zeros_like(x))
    wanted = wanted + block.mlp(block.norm2(wanted))
    torch.testing.assert_close(block(x, layout, None)[0], wanted)
    stopped = small_spt(7, threshold=1.0, ffn_on="selected").layers[2].blocks[0]
    torch.testing.assert_close(
        stopped(x, layout, None)[0], x + block.attn.proj(torch.zeros_like(x))
    )


@pytest.mark.parametrize("optimized", [False, True])
def test_what_the_output_projection_has_become_counts_for_unselected_tokens(optimized):
    """Their attention is the projection of zeros, not the bias of the plain layer."""
    model = half_selecting(9)
    block, x = model.layers[2].blocks[0], torch.randn(1, 16, 48)
    layout = LevelLayout.from_valid_sizes([(4, 4)], [[(4, 4)]])
    plain = copy.deepcopy(block)
    if optimized:
        optimize(model)
    block.attn.proj.register_forward_hook(lambda layer, inputs, output: 2 * output)
    with torch.no_grad():
        plain.attn.proj.weight.mul_(2)
        plain.attn.proj.bias.normal_()
        block.attn.proj.bias.copy_(plain.attn.proj.bias / 2)
        torch.testing.assert_close(
            block(x, layout, None)[0], plain(x, layout, None)[0], rtol=1e-5, atol=1e-5
        )
        assert 0 < block(x, layout, None)[1].pack.counts[0] < 16


@pytest.mark.parametrize("start", [1, 2, 4])
def test_the_first_selecting_stage_is_an_option(start):
    model = half_selecting(8, start_stage=start)
    packs = maps_of(model, torch.randn(1, 3, 64, 64))
    assert len(packs) == sum(SMALL["depths"][start - 1 :])


def test_checkpointing_changes_neither_outputs_nor_gradients():
    results = []
    images = torch.randn(1, 3, 64, 64)
    for use_checkpoint in (False, True):
        model = half_selecting(9, use_checkpoint=use_checkpoint).train()
        torch.manual_seed(1)
        outputs = model(images)
        sum(value.square().sum() for value in outputs.values()).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append((outputs, gradients))
    for name, value in results[0][0].items():
        torch.testing.assert_close(value, results[1][0][name])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_swins_weights_load_by_name_and_extra_blocks_are_fresh_or_copied():
    torch.manual_seed(0)
    swin = SwinTransformer(**SMALL)
    fresh = small_spt(depths=(1, 1, 5, 2))
    kept = fresh.layers[2].blocks[4].mlp.fc1.weight.clone()
    result = fresh.load_state_dict(swin.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert torch.equal(fresh.layers[2].blocks[4].mlp.fc1.weight, kept)
    copied = small_spt(depths=(1, 1, 5, 2), extra_blocks="copied")
    result = copied.load_state_dict(swin.state_dict(), strict=False)
    assert all("gate" in key for key in result.missing_keys) and not result.unexpected_keys
    for block, source in ((0, 0), (1, 1), (2, 0), (3, 1), (4, 0)):
        assert torch.equal(
            copied.layers[2].blocks[block].mlp.fc1.weight,
            swin.layers[2].blocks[source].mlp.fc1.weight,
        )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threshold": 1.5}, "threshold must lie in"),
        ({"keep_ratio": -0.1}, "keep_ratio must lie in"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"ffn_on": "none"}, "ffn_on must be one of"),
        ({"selection_labels": "points"}, "selection_labels must be one of"),
        ({"start_stage": 5}, "start_stage must be 1 to 4"),
        ({"attn_drop_rate": 0.1}, "attn_drop_rate must be 0"),
    ],
)
def test_wrong_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        SPT(**{**SMALL, **options})
