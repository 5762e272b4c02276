"""The choice in exported programs is the choice of the sparsifier, for images of every size."""

import pytest
import torch

from dynamic_detr import DynamicSparsifier
from tokendetr.encoder import TokenEncoder
from tokendetr.errors import ExportError
from tokendetr.tokens import LevelLayout

SHAPES = ((14, 19), (7, 10), (4, 5))
SIZES = (
    ((14, 19), (7, 10), (4, 5)),
    ((9, 11), (5, 6), (3, 3)),
    ((3, 19), (2, 10), (1, 5)),
    ((14, 2), (7, 1), (4, 1)),
    ((1, 1), (1, 1), (1, 1)),
    ((13, 17), (7, 9), (4, 5)),
)
STAGES = {
    "keep_ratios": (0.5, 0.4, 0.3),
    "level_orders": ((1, 2, 3), (3, 2, 1)),
    "stage_lengths": (1, 1),
    "window_sizes": (4, 2),
    "alignment": "off",
}


@torch.no_grad()
def memories(memory_BNC, **options):
    """The encoder's real tokens with sizes as numbers, and with sizes as a tensor."""
    torch.manual_seed(0)
    encoder = TokenEncoder(
        embed_dim=16,
        num_heads=2,
        feedforward_dim=24,
        num_layers=2,
        num_feature_levels=3,
        num_points=2,
        sparsifier=DynamicSparsifier(**{**STAGES, **options}),
    ).eval()
    known = LevelLayout.from_valid_sizes(SHAPES, SIZES)
    traced = LevelLayout.from_traced_sizes(SHAPES, torch.tensor(SIZES))
    return [
        encoder(memory_BNC, query_pos=memory_BNC.flip(-1), layout=layout)[known.valid_BN]
        for layout in (known, traced)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"merge": "sum", "window_update": "broadcast"},
        {"merge": "retain"},
        {"anchor": "center", "window_update": "broadcast"},
        {"affinity_matching": False},
        {"keep_ratios": (1.0, 0.4, 1.0)},
        {"ratio_order": "gather", "window_sizes": (3, 5), "stages": 1},
    ],
)
@pytest.mark.parametrize("alike", [False, True])
def test_sizes_in_tensors_choose_what_sizes_in_numbers_choose(options, alike):
    generator = torch.Generator().manual_seed(3)
    memory_BNC = torch.randn(len(SIZES), 356, 16, generator=generator)
    if alike:  # equally coherent windows and equally rare tokens: the order of places decides
        memory_BNC = torch.ones(len(SIZES), 356, 1) * memory_BNC[:1, :1].sign()
    expected, found = memories(memory_BNC, **options)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("option", [{"merge": "max"}, {"selection": "random"}])
def test_what_has_no_fixed_shapes_is_named(option):
    (name, value), *_ = option.items()
    with pytest.raises(ExportError, match=f"{name}='{value}'"):
        memories(torch.zeros(len(SIZES), 356, 16), **option)
