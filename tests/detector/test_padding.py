"""Backbones see whole images: inputs are padded to their constraints, and nothing else changes."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import (
    FPN,
    BasicStem,
    ResNet,
    SimpleFeaturePyramid,
    SwinTransformer,
    ViT,
)
from detectron2.modeling.backbone.resnet import BasicBlock
from detrex.layers import PositionEmbeddingSine
from detrex.modeling.backbone import ConvNeXt
from detrex.modeling.neck import ChannelMapper
from torch import nn
from torch.nn import functional as F

from spt_backbone import SPT
from tests.small_detectors import WIDTH, build, record
from tokendetr.detector.images import pad_images, read_images
from tokendetr.detector.padding import PaddingRule
from tokendetr.detector.pyramid import build_pyramid
from tokendetr.encoder.forward_context import current_pass

MEAN, STD = torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 50.0)
SWIN = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}


def resnet() -> nn.Module:
    stages = [
        ResNet.make_stage(
            BasicBlock,
            1,
            in_channels=channels // 2 if index else 8,
            out_channels=channels,
            stride_per_block=[1 if index == 0 else 2],
            norm="",
        )
        for index, channels in enumerate((8, 16, 32, 64))
    ]
    return ResNet(BasicStem(3, 8, norm=""), stages, out_features=["res3", "res4", "res5"])


def swin(kind: type = SwinTransformer) -> nn.Module:
    return kind(**SWIN, window_size=7, out_indices=(1, 2, 3))


def vit() -> ViT:
    return ViT(img_size=96, patch_size=16, embed_dim=16, depth=2, num_heads=2, pretrain_img_size=96)


def vit_pyramid(**options) -> nn.Module:
    return SimpleFeaturePyramid(
        vit(), "last_feat", out_channels=16, scale_factors=(2.0, 1.0, 0.5), **options
    )


BACKBONES = {
    "resnet": resnet,
    "swin": swin,
    "spt": lambda: swin(SPT),
    "fpn": lambda: FPN(resnet(), ["res3", "res4", "res5"], 16),
    "vit_pyramid": vit_pyramid,
    "vit": vit,
    "vit_square": lambda: vit_pyramid(square_pad=192),
    "convnext": lambda: ConvNeXt(
        depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), layer_scale_init_value=1.0, out_indices=(1, 2, 3)
    ),
}
DIVISORS = {
    "resnet": 1,
    "swin": 4,
    "spt": 4,
    "fpn": 32,
    "vit_pyramid": 32,
    "vit": 16,
    "vit_square": 32,
    "convnext": 4,
}


def parts(name: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    backbone = BACKBONES[name]().eval()
    shapes = {key: ShapeSpec(channels=s.channels) for key, s in backbone.output_shape().items()}
    neck = ChannelMapper(
        shapes, list(shapes), WIDTH, num_outs=len(shapes) + 1, norm_layer=nn.GroupNorm(4, WIDTH)
    )
    return backbone, neck.eval(), PositionEmbeddingSine(WIDTH // 2, normalize=True)


def read(images, backbone):
    records = [{"image": image, "file_name": f"{i}.jpg"} for i, image in enumerate(images)]
    return read_images(
        records, pixel_mean_C11=MEAN, pixel_std_C11=STD, padding=PaddingRule.of(backbone)
    )


@pytest.mark.parametrize("share_canvas", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_pixel_row_and_column_can_change_the_result(name, share_canvas):
    model = parts(name)
    images = [
        torch.rand(3, *size, dtype=torch.float32).mul(255).requires_grad_()
        for size in ((95, 111), (130, 79))
    ]
    pyramid = build_pyramid(*model, read(images, model[0]), share_canvas=share_canvas)
    total = 0
    for level, feature in enumerate(pyramid.features):
        real = pyramid.layout.grid(pyramid.layout.valid_BN, level)[:, None]
        total = total + (feature * torch.randn_like(feature) * real).sum()
    total.backward()
    for image in images:
        seen = image.grad.abs().sum(dim=0)
        assert (seen.sum(dim=1) > 0).all(), f"rows {(seen.sum(dim=1) == 0).nonzero().flatten()}"
        assert (seen.sum(dim=0) > 0).all(), f"columns {(seen.sum(dim=0) == 0).nonzero().flatten()}"


@pytest.mark.parametrize("name", BACKBONES)
def test_padding_to_the_multiple_changes_nothing_else(name):
    backbone, neck, positions = parts(name)
    divisor = DIVISORS[name]
    assert PaddingRule.of(backbone).divisor == divisor
    inputs = []
    backbone.register_forward_pre_hook(
        lambda module, args: inputs.append((args[0], current_pass().extents_of(args[0])))
    )
    image = torch.rand(3, 95, 111) * 255
    batch = read([image], backbone)
    with torch.no_grad():
        pyramid = build_pyramid(backbone, neck, positions, batch, share_canvas=False)
        height, width = (
            (192, 192) if name == "vit_square" else (95 + -95 % divisor, 111 + -111 % divisor)
        )
        seen, canvas = inputs.pop()
        expected = F.pad((image - MEAN) / STD, (0, width - 111, 0, height - 95))[None]
        assert torch.equal(seen, expected)
        assert canvas.sizes == ((95, 111),)
        for ours, theirs in zip(pyramid.features, neck(backbone(expected)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        # An image of a valid size is passed on unchanged.
        whole = expected[:, :, :96, :112] if name == "vit" else expected
        build_pyramid(
            backbone, neck, positions, read([whole[0] * STD + MEAN], backbone), share_canvas=False
        )
        torch.testing.assert_close(inputs.pop()[0], whole, rtol=0, atol=1e-4)


def test_the_real_part_of_a_level_is_the_part_that_shows_the_image():
    backbone, neck, positions = parts("vit_square")
    batch = read([torch.rand(3, 95, 111), torch.rand(3, 192, 33)], backbone)
    for share_canvas in (True, False):
        with torch.no_grad():
            pyramid = build_pyramid(backbone, neck, positions, batch, share_canvas=share_canvas)
        assert pyramid.layout.level_shapes[:3] == ((24, 24), (12, 12), (6, 6))
        for level, stride in enumerate((8, 16, 32)):
            real = pyramid.layout.grid(pyramid.layout.valid_BN, level)
            for row, (height, width) in enumerate(batch.sizes):
                rows, columns = -(-height // stride), -(-width // stride)
                assert int(real[row].sum()) == rows * columns
                assert real[row, :rows, :columns].all()


@pytest.mark.parametrize("name", BACKBONES)
def test_an_image_of_one_pixel_is_seen(name):
    backbone, neck, positions = parts(name)
    batch = read([torch.rand(3, 1, 1)], backbone)
    with torch.no_grad():
        pyramid = build_pyramid(backbone, neck, positions, batch, share_canvas=False)
    assert all(feature.isfinite().all() for feature in pyramid.features)


def test_images_larger_than_the_square_are_named():
    backbone = parts("vit_square")[0]
    with pytest.raises(ValueError, match=r"1\.jpg.*200 x 30 .*square of 192.*square_pad"):
        read([torch.rand(3, 95, 111), torch.rand(3, 200, 30)], backbone)


@pytest.mark.parametrize("training", [True, False])
def test_the_last_pixel_row_changes_a_detectors_result(training):
    model = build("dino")
    model.backbone = Patches()
    model.train(training)
    image = record(63, 47, [[4, 4, 30, 40]])
    changed = {**image, "image": image["image"].clone()}
    changed["image"][:, 62] = 255 - changed["image"][:, 62]
    results = []
    for one in (image, changed):
        torch.manual_seed(1)
        with torch.no_grad():
            results.append(model([one]))
    if training:
        assert results[0]["loss_class"] != results[1]["loss_class"]
    else:
        scores = [result[0]["instances"].scores for result in results]
        assert not torch.equal(*scores)


class Patches(nn.Module):
    """Maps of stride 8 and 16 from patches that do not overlap, with padding constraints."""

    padding_constraints = {"size_divisibility": 16}

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 8, stride=8)
        self.coarse = nn.Conv2d(8, 16, 2, stride=2)

    def forward(self, images):
        fine = self.fine(images)
        return {"fine": fine, "coarse": self.coarse(fine)}


def test_stacking_pads_with_zeros_only_where_something_is_missing():
    images = [torch.ones(3, 2, 3), torch.ones(3, 2, 3)]
    assert torch.equal(pad_images(images, (2, 3)), torch.ones(2, 3, 2, 3))
    padded = pad_images(images, (4, 5))
    assert padded.shape == (2, 3, 4, 5)
    assert padded.sum() == 36
    mixed = pad_images([torch.ones(3, 2, 3), torch.ones(3, 1, 5)], (2, 6))
    assert mixed[1, :, 0, :5].all()
    assert mixed.sum() == 18 + 15
