"""timm's own models, if timm is installed."""

import pytest
import torch

from token_transforming import restore, transform

timm = pytest.importorskip("timm", reason="timm is not installed")
SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}


def models():
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    yield VisionTransformer(**SMALL), 1
    yield VisionTransformer(**SMALL, class_token=False, global_pool="avg"), 0
    yield VisionTransformer(**SMALL, reg_tokens=4, init_values=0.1, qk_norm=True), 5
    yield VisionTransformerDistilled(**SMALL), 2


@torch.no_grad()
def test_timms_models_keep_all_tokens_or_half_and_are_restored():
    for model, prefix in models():
        torch.manual_seed(0)
        for parameter in model.eval().parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        x = torch.randn(2, 3, 64, 64)
        dense = model.forward_features(x)
        transform(model, layers=(1, 2), keep_ratio=1.0, temperature=1e6)
        torch.testing.assert_close(model.forward_features(x), dense, rtol=1e-4, atol=1e-4)
        transform(model, layers=(1, 2), keep_ratio=0.5)
        assert model.forward_features(x).shape == (2, prefix + 16, 48)
        transform(model, layers=(1, 2), keep_ratio=0.5, recover="end")
        assert model.forward_features(x).shape == dense.shape
        assert torch.equal(restore(model).forward_features(x), dense)


@torch.no_grad()
@pytest.mark.parametrize("recover", ["auto", "never", "end", "every"])
def test_readers_of_intermediates_get_whole_maps(recover):
    for model, _ in models():
        torch.manual_seed(0)
        for parameter in model.eval().parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        x = torch.randn(2, 3, 64, 64)
        dense_last, dense = model.forward_intermediates(x, indices=[0, 1, 3])
        transform(model, layers=(1, 2), keep_ratio=1.0, temperature=1e6, recover=recover)
        last, found = model.forward_intermediates(x, indices=[0, 1, 3])
        for ours, theirs in zip((last, *found), (dense_last, *dense), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        transform(model, layers=(1, 2), keep_ratio=0.5, recover=recover, recovery="residual")
        last, found = model.forward_intermediates(x, indices=[0, 1, 3])
        assert [tuple(one.shape) for one in found] == [(2, 48, 8, 8)] * 3
        assert last.shape == dense_last.shape
        early = model.forward_intermediates(
            x, indices=[1], stop_early=True, intermediates_only=True
        )
        torch.testing.assert_close(early[0], found[1])
        again_last, again = restore(model).forward_intermediates(x, indices=[0, 1, 3])
        assert torch.equal(again_last, dense_last)
        assert all(map(torch.equal, again, dense))


@torch.no_grad()
def test_a_feature_extractor_of_timms_gets_whole_maps():
    model = timm.create_model(
        "vit_medium_patch16_gap_256", features_only=True, out_indices=(2, 5), img_size=64
    ).eval()
    transform(model, layers=(1, 4), keep_ratio=0.5)
    found = model(torch.randn(2, 3, 64, 64))
    assert [tuple(one.shape) for one in found] == [(2, 512, 4, 4)] * 2
