"""A small dense detector and its sparse copy."""

import copy

import torch
from torch import nn

from focus_detr import FocusSparsifier
from sparse_detr import SparseSparsifier
from tests.small_detectors import CLASSES, LAYERS, LEVELS, WIDTH, build, record
from tokendetr.encoder import observe
from tokendetr.encoder.bypass import AffineBypass

RECORDS = [record(96, 128, seed=1), record(64, 80, seed=2)]


def twins(
    name: str = "dino", method: str = "sparse", *, context: bool = True
) -> tuple[nn.Module, nn.Module]:
    """Build a dense detector and its sparse copy."""
    dense = build(name).eval()
    two_stage = name == "dino" or name.endswith("two_stage")
    torch.manual_seed(3)
    bypass = AffineBypass(embed_dim=WIDTH, num_layers=LAYERS, num_levels=LEVELS, context=context)
    if method == "focus":
        sparsifier = FocusSparsifier(
            embed_dim=WIDTH,
            num_heads=2,
            num_layers=LAYERS,
            num_levels=LEVELS,
            num_classes=None if two_stage else CLASSES,
            strides=(8, 16, 32),
            num_objects=0,
            bypass=bypass,
        )
    else:
        sparsifier = SparseSparsifier(
            embed_dim=WIDTH,
            num_classes=CLASSES,
            num_layers=LAYERS,
            selection="random" if method == "random" else "dam",
            projection="detector" if two_stage else "own",
            auxiliary_heads=False,
            bypass=bypass,
        )
    student = copy.deepcopy(dense)
    student.transformer.encoder.sparsifier = sparsifier
    return dense, observe(student).eval()
