"""Ratios, counts and analytic costs of Dynamic DETR against the published arithmetic."""

from typing import Any

import pytest
import torch
from detectron2.utils.analysis import FlopCountAnalysis

from dynamic_detr import TokenBudget, encoder_macs, query_token_macs, saved_macs
from dynamic_detr.budget import saved_tokens
from tests.dynamic_detr.dynamic_encoders import SIZES, dynamic_encoder
from tests.plain_encoder import CHANNELS, make_encoder
from tests.pyramids import make_batch
from tokendetr.encoder import TokenEncoder
from tokendetr.tokens import window_shapes

ORDERS = ((1, 2, 3, 4), (3, 2, 4, 1), (4, 3, 2, 1))
SMALL = ((100, 134), (50, 67), (25, 34), (13, 17))  # 800 x 1066 pixels
LARGE = ((107, 130), (54, 65), (27, 33), (14, 17))  # 850 x 1040 pixels


def budget(first: float = 0.5, **kwargs) -> TokenBudget:
    ratios = tuple(round(first - 0.1 * step, 2) for step in range(4))
    options = {"level_orders": ORDERS, "stage_lengths": (2, 3, 1), "window_sizes": (8, 4, 2)}
    return TokenBudget(ratios, **{**options, **kwargs})


def test_the_most_important_level_keeps_most():
    assert [budget().level_ratios(stage) for stage in range(3)] == [
        (0.5, 0.4, 0.3, 0.2),
        (0.2, 0.4, 0.5, 0.3),
        (0.2, 0.3, 0.4, 0.5),
    ]
    gathered = budget(ratio_order="gather")
    assert gathered.level_ratios(1) == (0.3, 0.4, 0.2, 0.5)


def test_layers_belong_to_stages():
    assert [budget().stage(layer) for layer in range(6)] == [0, 0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="6 layers"):
        budget().stage(6)


def test_merged_windows_never_under_keep_and_never_exceed_what_exists():
    one = budget()
    for size in ((100, 134), (50, 67), (25, 34), (13, 17), (16, 24), (9, 1), (5, 3), (1, 1)):
        tokens = size[0] * size[1]
        for ratio in (0.1, 0.25, 0.5, 0.9, 1.0):
            for level in range(3):
                merged = one.merged_windows(level, ratio, *size)
                shapes = window_shapes(*size, one.window_sizes[level])
                assert all(0 <= count <= shapes[shape] for shape, count in merged.items())
                kept = tokens - saved_tokens(merged)
                assert kept >= tokens * ratio - 1e-6
                if any(count < shapes[shape] for shape, count in merged.items()):
                    largest = max(rows * columns for rows, columns in shapes)
                    assert kept < tokens * ratio + largest


def test_windows_of_each_size_keep_the_same_share():
    """Level 1 at 800 x 1066 has windows of four sizes; none of them pays for another."""
    one = budget()
    merged = one.merged_windows(0, 0.5, 100, 134)
    shapes = window_shapes(100, 134, 8)
    assert shapes == {(8, 8): 80, (8, 9): 48, (9, 8): 40, (9, 9): 24}
    for shape, count in merged.items():
        assert count / shapes[shape] == pytest.approx(0.5 / (1 - 1 / 64), abs=1 / shapes[shape])


def test_products_that_mean_whole_numbers_are_not_rounded_down():
    # 10 * 10 cells * (1 - 0.7) = 30.000000000000004 or 29.99...; ten windows of 2 x 2 save 30.
    assert budget().merged_windows(2, 0.7, 10, 10) == {(2, 2): 10}
    assert budget().merged_windows(2, 0.9, 10, 3) == {(2, 3): 0}
    assert budget().merged_windows(2, 0.9, 10, 6) == {(2, 2): 2}


def test_windows_of_one_cell_never_merge():
    assert budget(window_sizes=(4, 2, 1)).merged_windows(2, 0.1, 10, 10) == {(1, 1): 0}
    assert budget().merged_windows(2, 0.1, 1, 1) == {(1, 1): 0}


def test_one_query_remains_on_the_coarsest_level():
    assert [budget().important_tokens(0.2, n) for n in (0, 1, 2, 3, 7, 8, 10)] == [
        0,
        1,
        1,
        1,
        1,
        2,
        2,
    ]


def test_a_queried_token_costs_what_the_papers_say():
    assert 6 * query_token_macs() == pytest.approx(7.39e6, rel=1e-3)
    assert 6 * query_token_macs(feedforward_dim=1024) == pytest.approx(4.24e6, rel=1e-3)


@pytest.mark.parametrize(("first", "expected"), [(0.4, 138.8), (0.5, 152.3), (0.8, 193.1)])
def test_total_cost_of_dynamic_dino(first, expected):
    """Dense DINO-R50 costs 237.3 and 246.6 GFLOPs at the two sizes whose blend is COCO's mean."""
    small, large = (
        dense - saved_macs(shapes, budget(first)) / 1e9
        for dense, shapes in ((237.3, SMALL), (246.6, LARGE))
    )
    assert 0.225 * small + 0.775 * large == pytest.approx(expected, rel=0.01)


def test_ratio_one_costs_what_the_dense_encoder_costs():
    ones = TokenBudget((1.0,) * 4, ORDERS, (2, 3, 1), (8, 4, 2))
    assert ones.keeps_all
    assert encoder_macs(SMALL, ones) == encoder_macs(SMALL)
    assert saved_macs(SMALL, ones) == 0
    assert ones.kept_tokens(0, SMALL) == sum(h * w for h, w in SMALL)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"keep_ratios": (0.5, 0.4, 0.0, 0.2)}, "keep_ratios"),
        ({"keep_ratios": (0.5, 0.4, 1.2, 0.2)}, "keep_ratios"),
        ({"keep_ratios": ()}, "keep_ratios"),
        ({"window_sizes": (8, 4)}, "window_sizes"),
        ({"window_sizes": (8, 4, 0)}, "window_sizes"),
        ({"stage_lengths": (2, 0, 4)}, "stage_lengths"),
        ({"level_orders": ORDERS[:2]}, "level_orders"),
        ({"level_orders": ((1, 2, 3, 3), *ORDERS[1:])}, "level_orders"),
        ({"ratio_order": "literal"}, "ratio_order"),
    ],
)
def test_wrong_arguments_are_named(change, name):
    options = {
        "keep_ratios": (0.5, 0.4, 0.3, 0.2),
        "level_orders": ORDERS,
        "stage_lengths": (2, 3, 1),
        "window_sizes": (8, 4, 2),
    }
    with pytest.raises(ValueError, match=name):
        TokenBudget(**{**options, **change})


class OfFeatures(torch.nn.Module):
    """An encoder as a function of its features alone."""

    def __init__(self, encoder: TokenEncoder, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.inputs = encoder.eval(), inputs

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        return self.encoder(**{**self.inputs, "query": x_BNC})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_fvcore_which_traces_a_model_counts_fewer_operations_than_of_a_dense_encoder():
    batch, _ = make_batch(SIZES[:1], CHANNELS)
    counts = [
        FlopCountAnalysis(OfFeatures(encoder, batch.inputs), batch.x_BNC).total()
        for encoder in (dynamic_encoder(), make_encoder(num_layers=6))
    ]
    assert 0 < counts[0] < 0.8 * counts[1]
