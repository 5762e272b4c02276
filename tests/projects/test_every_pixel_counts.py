"""Every pixel row and column of an image can change what a detector says about it."""

import pytest
import torch

from dynamic_detr import DynamicSparsifier
from focus_detr import FocusSparsifier
from lite_detr import LiteSparsifier
from sparse_detr import SparseSparsifier
from tests.small_detectors import CLASSES, LAYERS, LEVELS, WIDTH, build

SIZES = [(97, 131), (64, 80), (75, 133)]


def sparsifier(method: str):
    common = {"embed_dim": WIDTH, "num_layers": LAYERS}
    if method == "sparse":
        return SparseSparsifier(**common, num_classes=CLASSES, keep_ratio=0.3)
    if method == "focus":
        return FocusSparsifier(
            **common,
            num_heads=2,
            num_levels=LEVELS,
            num_objects=10,
            strides=[8 * 2**level for level in range(LEVELS)],
        )
    if method == "lite":
        return LiteSparsifier(
            **common, num_levels=LEVELS, high_levels=LEVELS - 1, num_blocks=1, narrow_dim=8
        )
    order = tuple(range(1, LEVELS + 1))
    return DynamicSparsifier(
        keep_ratios=(0.5, 0.4, 0.3, 0.2)[:LEVELS],
        level_orders=(order,) * LAYERS,
        stage_lengths=(1,) * LAYERS,
        window_sizes=(4, 2, 2)[: LEVELS - 1],
        alignment="off",
    )


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("method", ["dense", "dynamic", "focus", "lite", "sparse"])
def test_every_pixel_row_and_column_can_change_the_encoders_result(method, size):
    model = build("dino").eval()
    torch.manual_seed(1)
    if method != "dense":
        model.transformer.encoder.sparsifier = sparsifier(method).eval()
    memories = []
    hook = model.transformer.encoder.register_forward_hook(
        lambda module, args, output: memories.append(output)
    )
    image = (torch.rand(3, *size) * 255).requires_grad_()
    model([{"image": image, "height": size[0], "width": size[1]}])
    hook.remove()
    weights = torch.randn(memories[0].shape, generator=torch.Generator().manual_seed(2))
    (memories[0] * weights).sum().backward()
    touched = image.grad.abs().sum(dim=0) > 0
    assert touched.any(dim=1).all(), "a row of pixels changes nothing"
    assert touched.any(dim=0).all(), "a column of pixels changes nothing"
