"""A stage's choice by the compiled operators equals PyTorch's, bit for bit."""

import pytest
import torch

from dynamic_detr import DynamicPlan
from tests.dynamic_detr.dynamic_encoders import SIZES, dynamic_encoder
from tests.pyramids import make_batch
from tokendetr.encoder import EncoderContext
from tokendetr.ops import use_reference

OPTIONS = [
    {},
    {"affinity_matching": False},
    {"keep_ratios": (0.6, 0.5, 0.4, 1.0)},
    {"keep_ratios": (1.0, 1.0, 1.0, 0.3), "level_orders": ((1, 2, 3, 4),) * 3},
    {"keep_ratios": (0.3, 0.3, 0.3, 0.1), "num_neighbors": 20},
    {"merge": "sum"},
]


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1], [(16, 16), (16, 16)]])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_stage_merges_the_same_tokens(options, sizes):
    pyramid, _ = make_batch(sizes, 8)
    sparsifier = dynamic_encoder(**options).sparsifier.eval()
    memory_BNC = pyramid.x_BNC
    memory_BNC[:, 5:40] = memory_BNC[:, 5:6]  # windows and tokens that tie
    context = EncoderContext(
        layout=pyramid.layout,
        memory_BNC=memory_BNC,
        query_pos_BNC=None,
        reference_points_BNL2=pyramid.layout.reference_points_BNL2(),
        num_layers=6,
        run_dense=lambda: memory_BNC,
    )
    for layer in (0, 2, 5):
        token_map = DynamicPlan(context, sparsifier).token_map(layer, memory_BNC)
        with use_reference():
            expected = DynamicPlan(context, sparsifier).token_map(layer, memory_BNC)
        assert torch.equal(token_map.anchor_BK, expected.anchor_BK)
        assert (token_map.valid_BK is None) == (expected.valid_BK is None)
        if expected.valid_BK is not None:
            assert torch.equal(token_map.valid_BK, expected.valid_BK)
        assert len(token_map.groups) == len(expected.groups)
        for group, other in zip(token_map.groups, expected.groups, strict=True):
            assert type(group) is type(other)
            for name, value in vars(other).items():
                found = getattr(group, name)
                same = torch.equal if isinstance(value, torch.Tensor) else found.__class__.__eq__
                assert same(found, value), name
        with use_reference():
            reduced_BKC = expected.reduce(memory_BNC)
        torch.testing.assert_close(token_map.reduce(memory_BNC), reduced_BKC)
