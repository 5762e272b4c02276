"""Tables of costs: recorded costs of dense detectors, and the formula for dynamic ones."""

import pytest

from projects.dynamic_detr.table import (
    KEEP_RATIOS,
    OTHER_ROWS,
    TABLE_6,
    dense_cost,
    dynamic_cost,
    tables,
)
from tokendetr.config import zoo

MEASURED = {
    "Deformable DETR": (171.8, 176.1),
    "DINO": (244.5, 244.5),
    "DAB-Deformable DETR": (235.4, 235.4),
    "DN-Deformable DETR": (224.0, 231.3),
    "H-Deformable DETR": (234.8, 234.8),
}
"""GFLOPs of the dense detectors in detrex, at the same mean size (two models: a range)."""

ROWS = {row.name: row for row in TABLE_6}


@pytest.mark.parametrize(
    "name", ["DN-Deformable DETR", *(pytest.param(n, marks=pytest.mark.slow) for n in MEASURED)]
)
def test_dense_detectors_cost_what_was_measured(name):
    cost = dense_cost(ROWS[name].dense)
    low, high = MEASURED[name]
    assert 0.99 * low <= cost.total <= 1.01 * high
    assert cost.encoder == pytest.approx(cost.encoder_by_formula, rel=0.01)


CELLS = [(name, ratios) for name in ROWS for ratios in KEEP_RATIOS]
FAST = [("Deformable DETR", KEEP_RATIOS[0])]


@pytest.mark.parametrize(
    ("name", "ratios"), [*FAST, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS)]
)
def test_dynamic_detectors_cost_what_the_formula_says(name, ratios):
    cost = dynamic_cost(ROWS[name].dynamic, ratios)
    assert cost.encoder == pytest.approx(cost.encoder_by_formula, rel=0.01)
    assert cost.total == pytest.approx(cost.total_by_formula, rel=0.01)


def test_every_cell_of_the_paper_has_a_config():
    assert sum(len(row.paper_dynamic) for row in TABLE_6) == 25
    listed = set(zoo.list())
    for row in (*TABLE_6, *OTHER_ROWS):
        assert {row.dense, row.dynamic} <= listed
        sparsifier = zoo.get_config(row.dynamic).model.transformer.encoder.sparsifier
        assert tuple(sparsifier.keep_ratios) in KEEP_RATIOS[:2]


def test_the_table_sets_the_papers_figures_against_ours(monkeypatch):
    """With costs that are made up, so that nothing is counted."""
    from projects.dynamic_detr import table

    monkeypatch.setattr(table, "dense_cost", lambda config: table.Cost(200.0, 100.0, 101.0))
    monkeypatch.setattr(
        table, "dynamic_cost", lambda config, ratios: table.Cost(100 + 100 * ratios[0], 50.0, 50.5)
    )
    first, detectors, others = tables()
    assert len(first.rows) + len(detectors.rows) == 30 and len(others.rows) == 6
    dino = next(row for row in first.rows if row[0] == "DINO" and row[1] == ".5 .4 .3 .2")
    cells = dict(zip(first.columns, dino, strict=True))
    assert cells["the paper's"] == 141.7
    assert cells["ours, counted"] == 150.0
    assert cells["ours, by formula"] == 150.5
    assert cells["counted - paper's"] == "+8.3"
    assert cells["share of dense"] == "75%"
