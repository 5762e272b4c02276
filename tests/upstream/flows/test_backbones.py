"""Token Transforming on detectron2's own Swin Transformer and ViTDet."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.model_zoo import get_config
from detectron2.modeling.backbone import SwinTransformer

from token_transforming import restore, transform

pytestmark = pytest.mark.upstream


def maps_of(model: torch.nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model.eval()(images)


def check(model: torch.nn.Module, images: torch.Tensor, layers: tuple[int, ...], **options) -> None:
    """Keep all: the dense maps; keep half: maps of the same shapes, other values; restore."""
    dense = maps_of(model, images)
    transform(model, layers=layers, keep_ratio=1.0, **options)
    for name, found in maps_of(model, images).items():
        torch.testing.assert_close(found, dense[name], rtol=1e-4, atol=1e-4)
    restore(model)
    transform(model, layers=layers, keep_ratio=0.5, **options)
    found = maps_of(model, images)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in dense.items()}
    assert any(not torch.equal(found[name], dense[name]) for name in found)
    restore(model)
    for name, value in maps_of(model, images).items():
        torch.testing.assert_close(value, dense[name])


def test_swin():
    torch.manual_seed(0)
    model = SwinTransformer(embed_dim=24, depths=(2, 2, 4, 2), num_heads=(1, 2, 3, 6))
    check(model, torch.randn(1, 3, 224, 224), (4,))


@pytest.mark.parametrize("relative", [False, True])
def test_vitdet(relative):
    """As detectron2's config has it, with relative positions, and without them."""
    torch.manual_seed(0)
    backbone = get_config("common/models/mask_rcnn_vitdet.py").model.backbone
    # A window of 14 tokens: dense windows over the edge also attend to the zeros there.
    backbone.net.img_size = backbone.square_pad = 224
    backbone.net.embed_dim, backbone.net.num_heads, backbone.net.depth = 48, 4, 6
    backbone.net.window_block_indexes = [0, 1, 3, 4]
    backbone.net.use_rel_pos = relative
    model = instantiate(backbone)
    check(model, torch.randn(1, 3, 224, 224), (2,))
