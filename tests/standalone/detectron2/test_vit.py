"""The plain vision transformer and its pyramid: keys, sizes, values against naive loops."""

import copy

import pytest
import torch
from detectron2.modeling import SimpleFeaturePyramid, ViT, get_vit_lr_decay_rate
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.utils import (
    get_abs_pos,
    get_rel_pos,
    window_partition,
    window_unpartition,
)
from torch import nn
from torch.nn import functional as F

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 12, "num_heads": 3, "depth": 2}


def small_vit(**options) -> ViT:
    torch.manual_seed(0)
    model = ViT(**{**SMALL, "pretrain_img_size": 32, **options}).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def attention_by_hand(attn, x_HWC: torch.Tensor) -> torch.Tensor:
    """Compute every query's weighted mean, position by position."""
    height, width, channels = x_HWC.shape
    places = [(row, column) for row in range(height) for column in range(width)]
    query, key, value = attn.qkv(x_HWC).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
    out = torch.empty(height, width, channels, dtype=x_HWC.dtype)
    for y, x in places:
        mixed = []
        for head in range(attn.num_heads):
            one = query[y, x, head]
            logits = torch.stack([(one * attn.scale) @ key[r, c, head] for r, c in places])
            if attn.use_rel_pos:
                logits = logits + torch.stack(
                    [
                        one @ attn.rel_pos_h[y - r + len(attn.rel_pos_h) // 2]
                        + one @ attn.rel_pos_w[x - c + len(attn.rel_pos_w) // 2]
                        for r, c in places
                    ]
                )
            weights = logits.softmax(0)
            values = torch.stack([value[r, c, head] for r, c in places])
            mixed.append(weights @ values)
        out[y, x] = torch.cat(mixed)
    return attn.proj(out)


@torch.no_grad()
@pytest.mark.parametrize("use_rel_pos", [False, True])
def test_attention_is_that_of_a_loop(use_rel_pos):
    attn = small_vit(use_rel_pos=use_rel_pos).blocks[0].attn
    side = 8  # the side that the position embeddings are made for
    x = torch.randn(1, side, side, 12, dtype=torch.double)
    torch.testing.assert_close(attn(x)[0], attention_by_hand(attn, x[0]))


@torch.no_grad()
def test_windows_see_the_zeros_that_pad_them_and_blocks_add_up():
    block = small_vit(window_size=4, window_block_indexes=(1,), use_rel_pos=True).blocks[1]
    x = torch.randn(1, 6, 7, 12, dtype=torch.double)
    normed = F.pad(block.norm1(x), (0, 0, 0, 1, 0, 2))[0]
    attended = torch.empty(8, 8, 12, dtype=torch.double)
    for row in (0, 4):
        for column in (0, 4):
            window = slice(row, row + 4), slice(column, column + 4)
            attended[window] = attention_by_hand(block.attn, normed[window])
    expected = x + attended[:6, :7]
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (4, 3)])
def test_cutting_windows_is_undone(size):
    x = torch.randn(2, *size, 3)
    windows, padded = window_partition(x, 4)
    assert windows.shape == (2 * padded[0] * padded[1] // 16, 4, 4, 3)
    assert torch.equal(windows[0, : size[0], : size[1]], x[0, :4, :4])
    assert torch.equal(window_unpartition(windows, 4, padded, size), x)
    assert torch.equal(window_unpartition(windows.flatten(1, 2), 4, padded, size), x)


def test_position_embeddings_are_resized():
    table = torch.arange(7.0)[:, None]
    assert get_rel_pos(4, 4, table)[..., 0].tolist() == [
        [3, 2, 1, 0],
        [4, 3, 2, 1],
        [5, 4, 3, 2],
        [6, 5, 4, 3],
    ]
    resized = get_rel_pos(6, 6, table)[..., 0]
    assert resized.shape == (6, 6) and resized[0, 0] == pytest.approx(3.0)
    assert (resized.diff(dim=0) > 0).all() and (resized.diff(dim=1) < 0).all()
    assert get_rel_pos(2, 4, table)[..., 0].tolist() == [[3, 2, 1, 0], [5, 4, 3, 2]]
    absolute = torch.randn(1, 17, 3)
    assert torch.equal(get_abs_pos(absolute, True, (4, 4))[0, 1, 2], absolute[0, 1 + 6])
    assert get_abs_pos(absolute[:, 1:], False, (6, 5)).shape == (1, 6, 5, 3)
    with pytest.raises(AssertionError, match="17 positions do not form a square"):
        get_abs_pos(absolute, False, (4, 4))


def test_keys_sizes_gradients_and_checkpointing():
    options = {"use_rel_pos": True, "residual_block_indexes": (1,), "window_size": 4}
    model = small_vit(**options, window_block_indexes=(0,)).float().train()
    keys = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert keys["pos_embed"] == (1, 65, 12) and keys["patch_embed.proj.weight"] == (12, 3, 4, 4)
    assert keys["blocks.0.attn.rel_pos_h"] == (7, 4)
    assert keys["blocks.1.attn.rel_pos_w"] == (15, 4)
    assert keys["blocks.0.mlp.fc1.weight"] == (48, 12) and keys["blocks.0.attn.qkv.bias"] == (36,)
    assert keys["blocks.1.residual.conv2.weight"] == (6, 6, 3, 3)
    assert keys["blocks.1.residual.norm3.bias"] == (12,)
    again = copy.deepcopy(model)
    again.use_act_checkpoint = True
    x = torch.rand(2, 3, 30, 41)
    for one in (model, again):
        out = one(x)["last_feat"]
        assert out.shape == (2, 12, 7, 10)
        out.square().mean().backward()
    for first, second in zip(model.parameters(), again.parameters(), strict=True):
        assert first.grad is not None
        torch.testing.assert_close(first.grad, second.grad)


def test_a_fresh_convolution_block_changes_nothing():
    torch.manual_seed(0)
    plain, extended = ViT(**SMALL).eval(), ViT(**SMALL, residual_block_indexes=(0, 1)).eval()
    extended.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(extended(x)["last_feat"], plain(x)["last_feat"])


def test_pyramid_levels():
    model = SimpleFeaturePyramid(
        small_vit().float(), "last_feat", 8, (4.0, 2.0, 1.0, 0.5), top_block=LastLevelMaxPool()
    )
    with pytest.raises(NotImplementedError, match="scale_factor=8"):
        SimpleFeaturePyramid(small_vit(), "last_feat", 8, (8.0,))
    assert {n: s.stride for n, s in model.output_shape().items()} == {
        "p0": 1,
        "p1": 2,
        "p2": 4,
        "p3": 8,
        "p4": 16,
    }
    assert {s.channels for s in model.output_shape().values()} == {8}
    model.top_block.in_feature = "p3"
    maps = model(torch.rand(1, 3, 32, 64))
    sizes = {name: tuple(value.shape[1:]) for name, value in maps.items()}
    assert sizes == {f"p{k}": (8, 32 >> k, 64 >> k) for k in range(5)}
    tiny = torch.rand(1, 3, 3, 5)
    maps = model(tiny)
    assert maps["p3"].shape[2:] == (1, 1)
    torch.testing.assert_close(maps["p3"], model(F.pad(tiny, (0, 3, 0, 5)))["p3"])
    keys = model.state_dict()
    # Convolutions and norms of a level are numbered; the backbone is "net".
    assert keys["simfp_0.0.weight"].shape == (12, 6, 2, 2)
    assert keys["simfp_0.4.norm.weight"].shape == (8,)
    assert keys["simfp_1.1.weight"].shape == (8, 6, 1, 1)
    assert keys["simfp_2.0.weight"].shape == (8, 12, 1, 1) and "simfp_2.0.bias" not in keys
    assert keys["simfp_3.2.weight"].shape == (8, 8, 3, 3) and "net.pos_embed" in keys


def test_learning_rates_fall_towards_the_first_block():
    rate = [
        get_vit_lr_decay_rate(name, 0.5, num_layers=2)
        for name in (
            "backbone.net.pos_embed",
            "backbone.net.blocks.0.attn.qkv.weight",
            "backbone.net.blocks.1.norm1.bias",
            "backbone.net.blocks.1.residual.conv1.weight",
            "neck.convs.0.weight",
        )
    ]
    assert rate == [0.125, 0.25, 0.5, 1.0, 1.0]
