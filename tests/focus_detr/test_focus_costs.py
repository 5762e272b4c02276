"""GFLOPs and parameters of Focus-DETR against the published figures."""

import pytest

from projects.focus_detr.table import (
    DETECTORS,
    DINO_GFLOPS,
    FOCUS_DINO,
    build,
    detector_gflops,
    million_parameters,
)
from tokendetr.analysis.flops import blended_flops, count_flops, synthetic_inputs
from tokendetr.encoder import set_keep_ratio


def test_focus_dino_costs_what_the_published_code_costs():
    model = build(FOCUS_DINO)
    assert million_parameters(model) == pytest.approx(49.34, abs=0.01)
    report = count_flops(model, synthetic_inputs(800, 1066), arithmetic=False)
    assert report.total / 1e9 == pytest.approx(149.6, rel=1e-3)  # the published code, counted
    assert not report.uncounted
    set_keep_ratio(model, 0.5)
    more = count_flops(model, synthetic_inputs(800, 1066), arithmetic=False)
    tokens, per_query = 17821, 7.39e6 / 6
    assert more.total - report.total == pytest.approx(0.2 * 6 * tokens * per_query, rel=0.02)


@pytest.mark.slow
def test_every_keep_ratio_costs_what_the_paper_says():
    model = build(FOCUS_DINO)
    for keep_ratio, paper in DINO_GFLOPS.items():
        set_keep_ratio(model, keep_ratio)
        assert blended_flops(model).total / 1e9 == pytest.approx(paper, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "config", "paper"), DETECTORS[1:], ids=lambda value: str(value)[:30]
)
def test_other_detectors_are_near_the_papers_tables(title, config, paper):
    assert detector_gflops(title, build(config)) == pytest.approx(paper, rel=0.02)
