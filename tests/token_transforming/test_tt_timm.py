"""timm's own models, where timm is installed."""

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
