"""SPT's cost: the formula equals the count, and dense Swin costs the published number."""

import pytest
import torch
from detectron2.modeling.backbone import SwinTransformer
from torch import nn

from projects.spt_backbone import table
from spt_backbone import SPT
from spt_backbone.flops import BackboneShape, backbone_macs, backbone_parameters
from tests.spt_backbone.spt_models import SMALL, half_selecting, maps_of
from tokendetr.analysis.flops import count_flops, synthetic_inputs

SHAPE = dict(embed_dim=12, window_size=4, container_length=16, out_stages=(2, 3, 4))


def counted(backbone: nn.Module, height: int, width: int, *, arithmetic: bool) -> float:
    inputs = synthetic_inputs(height, width)
    return count_flops(table.BackboneAlone(backbone), inputs, arithmetic=arithmetic).total


@pytest.mark.parametrize("size", [(128, 192), (200, 330)])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_formula_is_what_is_counted(size, ratio):
    backbone = SPT(**SMALL, keep_ratio=ratio)
    shape = BackboneShape(depths=SMALL["depths"], start_stage=3, **SHAPE)
    formula = backbone_macs(shape, *size, {3: ratio, 4: ratio})
    assert counted(backbone, *size, arithmetic=False) == pytest.approx(formula, rel=0.01)


def test_the_formula_is_what_is_counted_at_chosen_ratios():
    backbone = half_selecting(2)
    images = torch.stack([record["image"] for record in synthetic_inputs(200, 330)])
    packs = maps_of(backbone, images)
    ratios = [sum(pack.counts) / pack.num_all for pack in packs]
    assert min(ratios) > 0.1 or max(ratios) < 0.9
    shape = BackboneShape(depths=SMALL["depths"], start_stage=3, **SHAPE)
    stages = {3: sum(ratios[:2]) / 2, 4: sum(ratios[2:]) / 2}
    formula = backbone_macs(shape, 200, 330, stages)
    assert counted(backbone, 200, 330, arithmetic=True) == pytest.approx(formula, rel=0.01)


def test_dense_swin_is_counted_with_its_window_padding():
    backbone = SwinTransformer(**SMALL)
    shape = BackboneShape(depths=SMALL["depths"], **SHAPE)
    found = counted(backbone, 200, 330, arithmetic=False)
    assert found == pytest.approx(backbone_macs(shape, 200, 330), rel=0.01)
    assert backbone_macs(shape, 200, 330, window_padding=False) < found


@pytest.mark.parametrize("size", ["T", "S", "B"])
def test_dense_swin_costs_what_is_published(size):
    published, _, _ = table.PAPER_SWIN[size]
    found = table.backbone_giga(table.shape_of(size, extra_blocks=None))
    assert found == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("extra_blocks", [0, table.EXTRA_BLOCKS])
def test_the_papers_backbone_at_its_size_is_what_is_counted(extra_blocks):
    formula = table.backbone_giga(table.shape_of("T", extra_blocks=extra_blocks), 0.25)
    found = table.counted_giga("T", extra_blocks=extra_blocks, ratio=0.25)
    assert found == pytest.approx(formula, rel=0.01)


def test_mask_rcnn_around_the_backbone_costs_what_is_published():
    for size in ("T", "S"):
        backbone, total, _ = table.PAPER_SWIN[size]
        assert table.heads_giga(size) == pytest.approx(total - backbone, rel=0.02)


@pytest.mark.parametrize("start", [None, 1, 3, 4])
def test_the_formula_counts_every_parameter(start):
    dense = start is None
    backbone = SwinTransformer(**SMALL) if dense else SPT(**SMALL, start_stage=start)
    shape = BackboneShape(depths=SMALL["depths"], start_stage=start, **SHAPE)
    expected = sum(parameter.numel() for parameter in backbone.parameters())
    assert backbone_parameters(shape, SMALL["num_heads"]) == expected


def test_the_papers_rows_are_judged_by_the_formula():
    assert table.implied_ratio("T", table.EXTRA_BLOCKS, 84).startswith("none")
    ratio = float(table.implied_ratio("T", 0, 84))
    shape = table.shape_of("T", extra_blocks=0)
    assert table.backbone_giga(shape, ratio, project_all=True) == pytest.approx(84, abs=0.2)
    rendered = table.paper_table().markdown() + table.light_table().markdown()
    assert "SPT-T, BDD-S | 80 | 251 | 55" in rendered
