"""Damaged files of metrics cost neither curves nor a resume."""

import json

import pytest

from tokendetr.report.figures import training_figures
from tokendetr.train.results_table import draw_curves, results_csv
from tokendetr.train.writers import MetricsFile, recorded_rows

GOOD = {"iteration": 0, "total_loss": 1.0, "lr": 1e-4, "bbox/AP": 3}
ODD = ["abc", None, [1, 2], {"a": 1}, True, 10**400, float("nan"), float("inf")]


@pytest.mark.parametrize("name", ["total_loss", "lr", "bbox/AP", "iteration"])
def test_values_that_are_no_numbers_are_left_out(tmp_path, name):
    path = tmp_path / "metrics.json"
    rows = [{**GOOD, "iteration": number, name: value} for number, value in enumerate(ODD)]
    path.write_text("\n".join(json.dumps(row) for row in [GOOD, *rows]) + '\n{"iteration": 9, "to')
    found = recorded_rows(str(path))
    assert found[0] == GOOD
    assert all(type(value) in (int, float) for row in found for value in row.values())
    assert draw_curves(found) and results_csv(found)
    MetricsFile(str(path), 5)
    assert [row["iteration"] for row in recorded_rows(str(path))][:1] == [0]
    assert training_figures([Run(found)])


class Run:
    """Stands for a run of a report."""

    name = "run"

    def __init__(self, rows):
        self.rows = rows
