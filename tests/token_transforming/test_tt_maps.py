"""Transforming detectron2's ViT, whose tokens stay maps between blocks, and timm's."""

import copy
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling.backbone.vit import Attention

from tests.token_transforming.plain_vits import images, vision_transformer, vit
from token_transforming import UnsupportedModelError, restore, transform
from token_transforming.attention import NOT_A_KEY
from token_transforming.map_positions import grid_positions, map_bias
from token_transforming.settings import METHODS
from tokendetr.tokens import take_rows

HOW = {"keep_ratio": 0.5, "threshold": 0.2, "temperature": 20.0}


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_map_gives_what_its_sequence_gives(method):
    of_maps, of_sequences = vit(), vision_transformer()
    of_sequences.load_state_dict(of_maps.state_dict())
    x = images()
    layers = (1,) if method == "clustering" else (1, 2)  # clustering needs a grid
    transform(of_maps, layers=layers, method=method, **HOW)
    transform(of_sequences, layers=layers, method=method, recover="end", **HOW)
    found, expected = of_maps(x)["last_feat"], of_sequences(x)
    assert found.shape == (2, 24, 8, 8)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    dense = restore(of_maps)(x)["last_feat"]
    assert not torch.allclose(found, dense, atol=1e-3)


@torch.no_grad()
def test_keeping_all_tokens_is_the_dense_model_and_restore_is_exact():
    for build, options in ((vit, {}), (vision_transformer, {"recover": "end"})):
        model, x = build(), images()
        plain = copy.deepcopy(model)
        keys = list(model.state_dict())
        transform(model, layers=(1, 2), keep_ratio=1.0, temperature=1e6, **options)
        assert list(model.state_dict()) == keys
        found, dense = model(x), plain(x)
        again = restore(model)(x)
        if build is vit:
            found, dense, again = (out["last_feat"] for out in (found, dense, again))
        torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-4)
        assert torch.equal(again, dense)


@torch.no_grad()
def test_windows_before_a_reduction_and_after_restoring_work_as_ever():
    model = vit(window_size=4, window_block_indexes=(0, 3), use_rel_pos=True)
    for block in model.blocks[1:3]:
        block.attn.use_rel_pos = False
    x = images(32, 48)
    blocks = list(model.blocks)
    seen: dict[int, torch.Size] = {}
    for index, block in enumerate(blocks):
        block.register_forward_hook(
            lambda _m, _i, out, index=index: seen.update({index: out.shape})
        )
    transform(model, layers=(1,), recover=2, keep_ratio=0.5)
    assert model(x)["last_feat"].shape == (2, 24, 8, 12)
    assert seen[0] == seen[2] == seen[3] == (2, 8, 12, 24)
    assert seen[1] == (2, 48, 1, 24)
    transform(model, layers=(1,), recover=2, keep_ratio=1.0, temperature=1e6)
    found = model(x)["last_feat"]
    torch.testing.assert_close(found, restore(model)(x)["last_feat"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_clustering_needs_no_square_map():
    model = vit()
    transform(model, layers=(1,), method="clustering", keep_ratio=0.5)
    assert model(images(32, 64))["last_feat"].shape == (2, 24, 8, 16)


@torch.no_grad()
def test_relative_positions_and_windows_of_all_tokens_are_the_dense_models():
    model = vit(window_size=4, window_block_indexes=(0, 2), use_rel_pos=True)
    for block in model.blocks:
        for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
            torch.nn.init.normal_(table)
    x = images(32, 48)
    dense = model(x)["last_feat"]
    transform(model, layers=(1,), keep_ratio=1.0, temperature=1e6)
    torch.testing.assert_close(model(x)["last_feat"], dense, rtol=1e-4, atol=1e-4)
    transform(model, layers=(1, 3), keep_ratio=0.5)
    found = model(x)["last_feat"]
    assert found.shape == dense.shape
    assert not torch.allclose(found, dense, atol=1e-2)
    assert torch.equal(restore(model)(x)["last_feat"], dense)


@pytest.mark.parametrize("side", [0, 3])
def test_kept_tokens_look_up_their_own_offsets(side):
    torch.manual_seed(0)
    grid, heads, width = (6, 9), 2, 5
    size = (side, side) if side else grid
    attention = Attention(
        heads * width, heads, use_rel_pos=True, rel_pos_zero_init=False, input_size=size
    ).double()
    query_BMND = torch.randn(2, heads, 54, width, dtype=torch.float64)
    block = SimpleNamespace(attn=attention, window_size=side)
    place = grid_positions(grid, query_BMND.device)
    expected = torch.full((2, heads, 54, 54), NOT_A_KEY, dtype=torch.float64)
    for one in range(54):
        for other in range(54):
            (row, column), (key_row, key_column) = place[0, one].tolist(), place[0, other].tolist()
            if side and (row // side, column // side) != (key_row // side, key_column // side):
                continue
            table = attention.rel_pos_h[row - key_row + size[0] - 1]
            table = table + attention.rel_pos_w[column - key_column + size[1] - 1]
            expected[:, :, one, other] = query_BMND[:, :, one] @ table.detach()
    found = map_bias(block, query_BMND, place, grid)
    near = expected > NOT_A_KEY / 2
    torch.testing.assert_close(found[near], expected[near])
    assert (found[~near] < NOT_A_KEY / 2).all()
    kept_BK = torch.stack([torch.randperm(54)[:20].sort().values for _ in range(2)])
    of_kept = map_bias(
        block,
        take_rows(query_BMND.transpose(1, 2).flatten(2), kept_BK)
        .unflatten(2, (heads, width))
        .transpose(1, 2),
        place[0][kept_BK],
        grid,
    )
    for image in range(2):
        rows = found[image][:, kept_BK[image]][:, :, kept_BK[image]]
        torch.testing.assert_close(of_kept[image], rows)


def test_what_reduced_tokens_cannot_have_is_refused():
    windowed = vit(window_size=4, window_block_indexes=(0, 2, 3))
    with pytest.raises(UnsupportedModelError, match=r"block 3 of ViT attends in windows.*\(1\)"):
        transform(windowed, layers=(1, 3))
    with pytest.raises(UnsupportedModelError, match="block 2 of ViT ends with a convolution"):
        transform(vit(residual_block_indexes=(2,)), layers=(1,))
    with pytest.raises(ValueError, match="ViT outputs a map: recover cannot be 'never'"):
        transform(vit(), layers=(1,), recover="never")
