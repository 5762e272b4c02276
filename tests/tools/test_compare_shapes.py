"""The comparison of small detectors: its rows, and messages about missing ones."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from tests.source_tree import ROOT
from tokendetr.analysis.flops import synthetic_inputs
from tokendetr.analysis.recorded_rows import measured_notes, record_rows
from tokendetr.cli import compare_shapes
from tokendetr.cli.compare_shapes import Row, default_rows, parse_row, table
from tokendetr.config.load import load_config

NUMBERS = {
    **{f"bbox/{name}": 50.0 for name in ("AP", "APs", "APm", "APl")},
    "gflops": 1.0617,
    "encoder": 0.404,
    "ms": 61.25,
    "tokens/queries": 30.4,
    **{f"tokens/{name}-l{level}": 90.0 + level for name in ("reached", "kept") for level in (1, 2)},
}


def test_every_row_has_a_config_and_those_of_the_methods_have_weights():
    rows = default_rows()
    assert all(Path(row.config).is_file() for row in rows)
    trained = [row.name for row in rows if Path(row.checkpoint).is_file()]
    assert {"DINO", "Dynamic DETR", "Sparse DETR", "Focus-DETR"} <= set(trained)


def test_the_table_shows_levels_and_names_what_is_left_out():
    text = table({"one": NUMBERS}, [Row("two", "two.py", "gone.pth")], timed=True).markdown()
    row = next(line for line in text.splitlines() if line.startswith("| one"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["one", *["50.0"] * 4, "1.062", "0.404", "61.2", "30 %", "91 / 92", "91 / 92"]
    assert "left out: two; there is no gone.pth" in text


def test_rows_of_ones_own_are_read():
    assert parse_row("mine=a/b.py:c.pth") == Row("mine", "a/b.py", "c.pth")
    for text in ("a/b.py:c.pth", "mine=a/b.py", "=a:b"):
        with pytest.raises(argparse.ArgumentTypeError, match="NAME=CONFIG:CHECKPOINT"):
            parse_row(text)


def test_without_any_checkpoint_it_says_which_are_missing():
    with pytest.raises(SystemExit, match=r"none of the checkpoints exists.*gone\.pth"):
        compare_shapes.main(["--row", "mine=a.py:gone.pth"])


def test_what_weights_and_images_decide_is_counted(monkeypatch):
    cfg = load_config("spt_dino_shapes")
    model = instantiate(cfg.model).eval()
    monkeypatch.setattr(compare_shapes, "loaded_inputs", lambda *_: [synthetic_inputs(256, 256)])
    gflops = {}
    for bias in (-9.0, 9.0):
        for name, parameter in model.named_parameters():
            if name.endswith("gate.bias"):
                with torch.no_grad():
                    parameter.fill_(bias)
        gflops[bias] = compare_shapes.count(cfg, model)["gflops"]
    assert gflops[9.0] > 1.02 * gflops[-9.0]


def test_corr_has_a_table_of_its_own():
    modes = {
        mode: {"Corr": 30.0 + n, "Corr_spread": 2.0, "Corr_level1": 25.0, "Corr_level2": 40.0}
        for n, mode in enumerate(compare_shapes.CORR_MODES)
    }
    text = compare_shapes.corr_table({"one": modes}, 7).markdown()
    row = next(line for line in text.splitlines() if line.startswith("| one"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["one", "30 ± 2", "31", "32", "25 / 40"]
    assert "7 images" in text


def test_rows_that_are_not_measured_stay_as_they_were_recorded(tmp_path):
    file = tmp_path / "rows.json"
    record_rows(file, {"a": {"AP": 1.0, "ms": 5.0}, "b": {"AP": 2.0, "ms": 6.0}}, timed=True)
    before = json.loads(file.read_text())
    for row in before.values():
        row["measured"] = row["timed"] = "2020-01-01 on an old machine"
    file.write_text(json.dumps(before))
    recorded = record_rows(file, {"b": {"AP": 3.0}}, timed=False)
    assert recorded == json.loads(file.read_text()) and recorded["a"] == before["a"]
    assert (recorded["b"]["AP"], recorded["b"]["ms"]) == (3.0, 6.0)
    old, new, times = measured_notes(recorded)
    assert old == "Measured 2020-01-01 on an old machine: a."
    assert new.endswith(": b.") and "old machine" not in new
    assert times == "Times 2020-01-01 on an old machine: b."


@pytest.mark.checkout
def test_pages_show_the_recorded_rows():
    recorded = json.loads(compare_shapes.RECORDS.read_text())
    comparison = compare_shapes.table(recorded)
    rows = [line for line in comparison.markdown().splitlines() if line.startswith("| ")]
    page = (ROOT / "docs" / "comparison.md").read_text()
    assert all(row in page for row in rows), "run tokendetr compare-shapes --recorded --write"
    for name, project in compare_shapes.METHODS.items():
        shown = compare_shapes.method_table(recorded, name).markdown()
        assert shown in (ROOT / "projects" / project / "README.md").read_text()
