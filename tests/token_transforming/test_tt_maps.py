"""Transforming detectron2's ViT, whose tokens stay maps between blocks, and timm's."""

import copy

import pytest
import torch

from tests.token_transforming.plain_vits import images, vision_transformer, vit
from token_transforming import UnsupportedModelError, restore, transform
from token_transforming.settings import METHODS

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


def test_what_reduced_tokens_cannot_have_is_refused():
    with pytest.raises(UnsupportedModelError, match="block 3 of ViT has windows"):
        transform(vit(window_size=4, window_block_indexes=(3,)), layers=(1,))
    with pytest.raises(UnsupportedModelError, match="block 2 of ViT has a convolution"):
        transform(vit(residual_block_indexes=(2,)), layers=(1,))
    with_positions = vit(use_rel_pos=True)
    for block in with_positions.blocks[2:]:
        block.attn.use_rel_pos = False
    with pytest.raises(UnsupportedModelError, match="block 1 of ViT has relative positions"):
        transform(with_positions, layers=(1,))
    transform(with_positions, layers=(2,))
    with pytest.raises(ValueError, match="ViT puts out a map: recover cannot be 'never'"):
        transform(vit(), layers=(1,), recover="never")
