"""Small detectors with each method, and images of unequal sizes."""

import torch
from torch import nn

from dynamic_detr import DynamicSparsifier
from focus_detr import FocusSparsifier
from sparse_detr import SparseSparsifier
from tests import small_detectors as small
from tokendetr.encoder import AffineBypass, TokenSparsifier

CANVAS = (64, 96)
SIZES = ((64, 96), (48, 96), (64, 53), (33, 40), (17, 96), (64, 90), (55, 71), (40, 96))
ONE_STAGE = ("deformable", "deformable_refine", "dab", "dn", "h")


def sparsifier(method: str, *, two_stage: bool) -> TokenSparsifier | None:
    """Return a method for the small detectors; None for the dense encoder."""
    sizes = {"embed_dim": small.WIDTH, "num_layers": small.LAYERS}
    if method == "sparse":
        return SparseSparsifier(
            **sizes, num_classes=small.CLASSES, projection="detector" if two_stage else "own"
        )
    if method == "focus":
        return FocusSparsifier(
            **sizes,
            num_heads=2,
            num_levels=small.LEVELS,
            num_objects=10,
            layer_ratios=(0.5, 0.3),
            num_classes=None if two_stage else small.CLASSES,
        )
    if method == "dynamic":
        return DynamicSparsifier(
            keep_ratios=(0.5, 0.4, 0.3),
            level_orders=((1, 2, 3), (3, 2, 1)),
            stage_lengths=(1, 1),
            window_sizes=(4, 2),
        )
    return None


def build(detector: str, method: str = "dense", *, bypass: bool = False) -> nn.Module:
    """Build a detector with a method and reproducible random weights, also of a bypass."""
    model = small.build(detector)
    torch.manual_seed(1)
    chosen = sparsifier(method, two_stage=detector not in ONE_STAGE)
    if bypass:
        chosen.bypass = AffineBypass(
            embed_dim=small.WIDTH,
            num_layers=small.LAYERS,
            num_levels=small.LEVELS,
            context=True,
        )
        for parameter in chosen.bypass.parameters():
            nn.init.normal_(parameter, std=0.05)
    model.transformer.encoder.sparsifier = chosen
    return model.eval()


def images(sizes=SIZES) -> list[torch.Tensor]:
    """Return noise of the given sizes, 0..255."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) * 255 for size in sizes]
